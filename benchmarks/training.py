"""Fine-tuning: lethe against transformers' Trainer, in real tokens a second.

Same model, same prompt-answer pairs of several tasks, loss on answers, AdamW, one run:

- `padded`: Trainer, every batch padded to 1,024 tokens, as the reference code does;
- `grouped`: Trainer with dynamic padding and batches of like length, the best a user does today;
- `lethe`: `lethe.engine.training.fine_tune` with passes of `--micro-batch` examples.

    python benchmarks/training.py MODEL --tasks results/default/tasks/*/train.parquet

Each way runs in a process of its own. Seconds and tokens are those of the steps after the first
two. The ways meet the examples in different orders, and Trainer's grouped batches begin with the
longest example: so tokens are counted from the batches that the timed steps took. `share` is the
rate of the model's matrix products, three times the forward pass's, over the rate that one product
of the model's shape reaches in the same process; output-layer products of tokens without loss count
as done by none. `padded` takes fewer steps.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from scoring import matmul_rate, weights

BEGAN = time.perf_counter()
WAYS = ("padded", "grouped", "lethe")
# Steps that are not timed: memory is being laid out.
WARM_UP = 2


def pairs(tokenizer, tables: list[Path], count: int, max_tokens: int) -> list:
    """Examples of all tasks in turn, tokenised as lethe trains on them."""
    from lethe.data.examples import read_examples
    from lethe.data.tokens import tokenise

    tasks = [read_examples(table)[: -(-count // len(tables))] for table in tables]
    mixed = [example for together in zip(*tasks, strict=False) for example in together]
    found = tokenise(tokenizer, mixed[:count], max_tokens).examples
    return [example for example in found if example.scored]


def by_trainer(model, examples, pad_to: int | None, batch: int, steps: int):
    """Batches that transformers' Trainer took, one a step, and the times at which steps ended."""
    import torch
    import transformers

    ends: list[float] = []
    batches: list[list] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_arguments, **_options):
            ends.append(time.perf_counter())

    def padded(chosen):
        chosen = [item["example"] for item in chosen]
        batches.append(chosen)
        width = pad_to or max(len(example.ids) for example in chosen)
        ids = torch.zeros(len(chosen), width, dtype=torch.long)
        mask = torch.zeros(len(chosen), width, dtype=torch.long)
        labels = torch.full((len(chosen), width), -100)
        for row, example in enumerate(chosen):
            length = len(example.ids)
            ids[row, :length] = torch.tensor(example.ids)
            mask[row, :length] = 1
            labels[row, example.start : length] = ids[row, example.start : length]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    grouping = {} if pad_to else {"train_sampling_strategy": "group_by_length"}
    arguments = transformers.TrainingArguments(
        output_dir="/tmp/lethe-benchmark",
        per_device_train_batch_size=batch,
        max_steps=steps,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        remove_unused_columns=False,
        **grouping,
    )
    data = [{"example": e, "length": len(e.ids), "input_ids": e.ids} for e in examples]
    trainer = transformers.Trainer(
        model=model, args=arguments, train_dataset=data, data_collator=padded, callbacks=[Clock()]
    )
    trainer.train()
    # The loader is a batch ahead, in the order of the steps.
    return batches[: len(ends)], ends


def by_lethe(model, examples, batch: int, micro_batch: int):
    """The same of lethe's own loop."""
    import torch

    from lethe.config.model_settings import Recipe
    from lethe.engine import models, training
    from lethe.engine.training_loop import TrainingLoop

    models.use_machine(torch.get_num_threads(), 0)
    ends: list[float] = []
    batches: list[list] = []

    class TimedLoop(TrainingLoop):
        def take(self, step, *arguments):
            loss = super().take(step, *arguments)
            ends.append(time.perf_counter())
            batches.append(step.new)
            return loss

    training.TrainingLoop = TimedLoop
    settings = {"lr": 1e-5, "warmup_steps": 0, "decay": "constant", "max_tokens": 1024}
    recipe = Recipe(batch=batch, micro_batch=micro_batch, **settings)
    try:
        training.fine_tune(model, examples, recipe, "benchmark")
    finally:
        training.TrainingLoop = TrainingLoop
    return batches, ends


def timed(batches: list[list], ends: list[float]) -> dict:
    """Steps after the first two: how many, their tokens and answer tokens, and their seconds."""
    if len(batches) != len(ends) or len(ends) <= WARM_UP:
        sys.exit(f"{len(ends)} steps with {len(batches)} batches: too few examples to time")
    taken = [example for batch in batches[WARM_UP:] for example in batch]
    return {
        "steps": len(ends) - WARM_UP,
        "tokens": sum(len(example.ids) for example in taken),
        "answer_tokens": sum(example.scored for example in taken),
        "seconds": ends[-1] - ends[WARM_UP - 1],
    }


def run(way: str, settings: argparse.Namespace) -> dict:
    """One way in this process."""
    import resource

    import torch
    import transformers

    torch.set_num_threads(settings.threads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        settings.model, dtype=torch.float32, use_safetensors=True
    )
    steps = WARM_UP + (settings.padded if way == "padded" else settings.steps)
    count = settings.batch * (WARM_UP + settings.steps)
    examples = pairs(tokenizer, settings.tasks, count, settings.max_tokens)
    examples = examples[: len(examples) // settings.batch * settings.batch]
    ready = time.perf_counter() - BEGAN
    if way == "lethe":
        took = by_lethe(model, examples, settings.batch, settings.micro_batch)
    else:
        pad_to = 1024 if way == "padded" else None
        took = by_trainer(model, examples, pad_to, settings.batch, steps)
    found = timed(*took)
    head = model.get_output_embeddings().weight.numel()
    inner = weights(model) - head
    done = 6 * (inner * found["tokens"] + head * found["answer_tokens"]) / found["seconds"]
    mean = sum(len(e.ids) for e in examples) / len(examples)
    return {
        "way": way,
        **found,
        "tokens_per_second": found["tokens"] / found["seconds"],
        "share": done / matmul_rate(model, settings.micro_batch * round(mean)),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "seconds_to_first_batch": ready,
    }


def main() -> None:
    """Runs every way in a process of its own, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="folder of a model")
    parser.add_argument("--tasks", type=Path, nargs="+", required=True, help="train.parquet files")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--padded", type=int, default=1, help="steps of the padded way")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help="only this one, in this process")
    parser.add_argument("--out", type=Path, default=Path("results/benchmark_training.json"))
    settings = parser.parse_args()
    if settings.way:
        print(json.dumps(run(settings.way, settings)))
        return
    found = []
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    rates = {line["way"]: line["tokens_per_second"] for line in found}
    for line in found:
        rate = line["tokens_per_second"]
        print(
            f"{line['way']:8} {rate:7.1f} tokens/s  x padded {rate / rates['padded']:5.1f}"
            f"  x grouped {rate / rates['grouped']:5.2f}  share {line['share']:.2f}"
            f"  peak {line['peak_mb']:.0f} MB"
            f"  first batch {line['seconds_to_first_batch']:.1f} s"
        )
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
