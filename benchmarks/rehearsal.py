"""Time per step of Rehearsal inside transformers' Trainer, as a ratio to the Trainer alone.

    python benchmarks/rehearsal.py                       # a scratch model with random weights
    python benchmarks/rehearsal.py results/smollm2/smollm2-135m/base --lora
    python benchmarks/rehearsal.py MODEL --json rehearsal.json

Same model, same batches of prompts and answers, AdamW, one run:

- `plain`: Trainer alone;
- `text`, `kl`: with `--replayed` replayed examples per step, cross-entropy or KL to the base model;
- `prompt`: KL to the base model at all prompt positions, without replay;
- `positions`: the same at `--positions` random positions per example.

Without a GPU, seconds are those of the processor (`time.process_time`), so that a neighbour's load
counts little. Ways take turns. `ratio` is the median over rounds of
the way's time per step over that of `plain` in the same round; the first two steps of a training
are not timed. Tokens are random words of the model's vocabulary: speed does not depend on them.
"""

import argparse
import copy
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS = ("plain", "text", "kl", "prompt", "positions")
# Steps that are not timed: memory is being laid out.
WARM_UP = 2
SCRATCH = {"vocabulary": 4096, "hidden": 128, "layers": 4, "heads": 4, "context": 512}


def load_model(path: str | None, lora: bool) -> tuple[Any, Any]:
    """The model and its tokenizer; a scratch model without a path."""
    from lethe.config.model_settings import LoRA, Pretraining
    from lethe.engine import models

    if path is None:
        words = " ".join(str(number) for number in range(3000))
        tokenizer = models.train_tokenizer([words], SCRATCH["vocabulary"])
        settings = Pretraining(**SCRATCH, steps=1, batch=1)
        model = models.from_scratch("llama", settings, SCRATCH["vocabulary"], 0)
    else:
        model, tokenizer = models.load(models.card(path))
    return (models.add_lora(model, LoRA(rank=16), 0) if lora else model), tokenizer


def make_pairs(vocabulary: int, count: int, prompt: int, answer: int) -> list[dict[str, list[int]]]:
    """Random prompts and answers of half to all of the given lengths, with labels."""
    rng = random.Random(0)
    pairs = []
    for _ in range(count):
        before = rng.randint(prompt // 2, prompt)
        after = rng.randint(answer // 2, answer)
        ids = [rng.randrange(1, vocabulary) for _ in range(before + after)]
        pairs.append({"input_ids": ids, "labels": [-100] * before + ids[before:]})
    return pairs


def padded(examples: list[dict[str, list[int]]]) -> dict[str, Any]:
    """A batch of examples, padded on the right."""
    import torch

    width = max(len(example["input_ids"]) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        ids[row, :length] = torch.tensor(example["input_ids"])
        mask[row, :length] = 1
        labels[row, :length] = torch.tensor(example["labels"])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def write_pool(path: Path, tokenizer: Any, count: int, tokens: int) -> None:
    """A pool of texts of about so many tokens."""
    from lethe.data.examples import Example, UpstreamExample, write_upstream

    rng = random.Random(1)
    vocabulary = len(tokenizer)
    examples = []
    for number in range(count):
        text = tokenizer.decode([rng.randrange(1, vocabulary) for _ in range(tokens)])
        example = Example(text=f"{number} {text}")
        examples.append(UpstreamExample(f"a-{number:05d}", "a", "replayable", example))
    write_upstream(path, examples)


def options_of(way: str, pool: Path, settings: argparse.Namespace) -> dict[str, Any] | None:
    """Arguments of Rehearsal.attach; None for the Trainer alone."""
    if way == "plain":
        return None
    if way in ("text", "kl"):
        return {
            "replay": pool,
            "objective": way,
            "examples_per_step": settings.replayed,
            "max_tokens": settings.prompt + settings.answer,
        }
    positions = settings.positions if way == "positions" else None
    return {"prompt_kl": 1.0, "prompt_kl_positions": positions}


def seconds_per_step(
    model: Any, tokenizer: Any, pairs: list, options: dict[str, Any] | None, settings: Any
) -> float:
    """Median seconds of the timed steps of one training."""
    import transformers

    from lethe.integrations import Rehearsal

    ends: list[float] = []
    clock = time.perf_counter if settings.gpu else time.process_time

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_arguments, **_options):
            ends.append(clock())

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=settings.batch,
            max_steps=settings.steps + WARM_UP,
            learning_rate=1e-5,
            report_to=[],
            use_cpu=not settings.gpu,
            bf16=settings.bf16,
            disable_tqdm=True,
            save_strategy="no",
            logging_strategy="no",
            remove_unused_columns=False,
        )
        trainer = transformers.Trainer(
            model=copy.deepcopy(model),
            args=arguments,
            train_dataset=pairs,
            data_collator=padded,
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        if options is not None:
            Rehearsal.attach(trainer, **options)
        trainer.train()
    timed = ends[WARM_UP - 1 :]
    return statistics.median(timed[i + 1] - timed[i] for i in range(len(timed) - 1))


def measure(model: Any, tokenizer: Any, settings: argparse.Namespace) -> dict[str, dict]:
    """Seconds per step and ratio to the Trainer alone, by way."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    count = settings.batch * (settings.steps + WARM_UP)
    pairs = make_pairs(vocabulary, count, settings.prompt, settings.answer)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder, "pool.parquet")
        length = (settings.prompt + settings.answer) * 3 // 4
        write_pool(pool, tokenizer, 4 * settings.replayed, length)
        for _ in range(settings.rounds):
            for way in WAYS:
                options = options_of(way, pool, settings)
                seconds[way].append(seconds_per_step(model, tokenizer, pairs, options, settings))
    records = {}
    for way, values in seconds.items():
        ratios = [value / plain for value, plain in zip(values, seconds["plain"], strict=True)]
        records[way] = {
            "seconds_per_step": statistics.median(values),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
    return records


def parser() -> argparse.ArgumentParser:
    """The command line of this benchmark."""
    line = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    line.add_argument("model", nargs="?", help="folder of a model; without it a scratch model")
    line.add_argument("--lora", action="store_true", help="train adapters of rank 16")
    line.add_argument("--steps", type=int, default=8, help="timed steps per training")
    line.add_argument("--rounds", type=int, default=3)
    line.add_argument("--batch", type=int, default=8, help="new examples per step")
    line.add_argument("--replayed", type=int, default=1, help="replayed examples per step")
    line.add_argument("--positions", type=int, default=8, help="random prompt positions")
    line.add_argument("--prompt", type=int, default=160, help="longest prompt in tokens")
    line.add_argument("--answer", type=int, default=80, help="longest answer in tokens")
    line.add_argument("--threads", type=int, default=1)
    line.add_argument("--gpu", action="store_true")
    line.add_argument("--bf16", action="store_true")
    line.add_argument("--json", type=Path, help="file that receives the numbers")
    return line


def main() -> None:
    """Measures and prints."""
    settings = parser().parse_args()
    import torch

    torch.set_num_threads(settings.threads)
    model, tokenizer = load_model(settings.model, settings.lora)
    records = measure(model, tokenizer, settings)
    print(f"{'way':<12}{'s per step':>12}{'ratio':>8}   ratios of the rounds")
    for way, record in records.items():
        ratios = " ".join(f"{ratio:.2f}" for ratio in record["ratios"])
        print(f"{way:<12}{record['seconds_per_step']:>12.3f}{record['ratio']:>8.2f}   {ratios}")
    if settings.json is not None:
        settings.json.write_text(json.dumps(records, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
