"""Scoring upstream examples: lethe against transformers' Trainer, in real tokens a second.

Same model, same ragged real text of 26 to 256 tokens, one run:

- `padded`: Trainer, every batch padded to 1,024 tokens, as the reference code does;
- `grouped`: Trainer with dynamic padding, examples sorted by length: the best a user does today;
- `lethe`: `lethe.scoring.score`.

    python benchmarks/scoring.py MODEL --texts results/smollm2/corpus.parquet

MODEL is a folder that transformers loads, results/smollm2/smollm2-135m/base say, which
`snakemake results/smollm2/smollm2-135m/model.json --configfile experiments/smollm2.yaml` makes.
Each way runs in a process of its own, so that peak memory is its own; `share` is the rate of the
model's matrix products over the rate that one product of the model's shape reaches in the same
process. `padded` scores fewer examples, it would take the afternoon otherwise.
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

BEGAN = time.perf_counter()
WAYS = ("padded", "grouped", "lethe")
LENGTHS = (26, 256)


def ragged(tokenizer, texts: Path, count: int) -> list:
    """`count` examples of real text, their lengths spread evenly, domains in turn."""
    import pyarrow.parquet as pq

    from lethe.data.tokens import Tokens

    table = pq.read_table(texts, columns=["domain", "text"]).to_pydict()
    by_domain: dict[str, list[int]] = {}
    for domain, text in zip(table["domain"], table["text"], strict=True):
        stream = by_domain.setdefault(domain, [])
        if text and len(stream) < 60_000:
            stream += tokenizer(text)["input_ids"]
    rng, streams, found = random.Random(0), list(by_domain.values()), []
    for i in range(count):
        length = rng.randint(*LENGTHS)
        stream = streams[i % len(streams)]
        start = rng.randrange(len(stream) - length)
        found.append(Tokens(stream[start : start + length], 1))
    return found


def matmul_rate(hidden: int, wide: int, tokens: int = 2048) -> float:
    """Multiply-adds times two a second of (tokens, hidden) x (hidden, wide), best of ten."""
    import torch

    a, b = torch.randn(tokens, hidden), torch.randn(wide, hidden)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        torch.nn.functional.linear(a, b)
        best = min(best, time.perf_counter() - start)
    return 2 * tokens * hidden * wide / best


def by_trainer(model, examples, pad_to: int | None, batch: int) -> list[float]:
    """Mean loss of each example by transformers' Trainer, kept by a metric hook of its own."""
    import numpy as np
    import torch
    import transformers

    def padded(chosen):
        width = pad_to or max(len(example.ids) for example in chosen)
        ids = torch.zeros(len(chosen), width, dtype=torch.long)
        mask = torch.zeros(len(chosen), width, dtype=torch.long)
        for row, example in enumerate(chosen):
            ids[row, : len(example.ids)] = torch.tensor(example.ids)
            mask[row, : len(example.ids)] = 1
        labels = ids.masked_fill(mask == 0, -100)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def losses(logits, labels):
        shifted = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), labels[:, 1:], reduction="none"
        )
        return shifted.sum(1) / (labels[:, 1:] != -100).sum(1)

    arguments = transformers.TrainingArguments(
        output_dir="/tmp/lethe-benchmark",
        per_device_eval_batch_size=batch,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        prediction_loss_only=False,
    )
    order = sorted(range(len(examples)), key=lambda row: -len(examples[row].ids))
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        data_collator=padded,
        preprocess_logits_for_metrics=losses,
    )
    found = np.empty(len(examples))
    found[order] = trainer.predict([examples[row] for row in order]).predictions
    return found.tolist()


def run(way: str, settings: argparse.Namespace) -> dict:
    """One way in this process: rate, share of the matrix-multiply rate, memory, start-up."""
    import resource

    import torch
    import transformers

    from lethe.scoring import score

    torch.set_num_threads(settings.threads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        settings.model, dtype=torch.float32, use_safetensors=True
    ).eval()
    examples = ragged(tokenizer, settings.texts, settings.examples)
    count = settings.padded if way == "padded" else settings.examples
    examples = examples[:count]
    ready = time.perf_counter() - BEGAN
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if way == "lethe":
        losses = score(model, examples, settings.tokens_per_batch).losses.tolist()
    else:
        batch = settings.batch
        losses = by_trainer(model, examples, 1024 if way == "padded" else None, batch)
    seconds = time.perf_counter() - start
    tokens = sum(len(example.ids) for example in examples)
    config = model.config
    rate = matmul_rate(config.hidden_size, config.intermediate_size)
    multiplied = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    if not tied:
        multiplied -= model.get_input_embeddings().weight.numel()
    return {
        "way": way,
        "examples": len(examples),
        "tokens_per_second": tokens / seconds,
        "share": 2 * multiplied * tokens / seconds / rate,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "before_mb": before / 1024,
        "seconds_to_first_batch": ready,
        "losses": losses,
    }


def main() -> None:
    """Runs every way in a process of its own, prints a table and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="folder of a model")
    parser.add_argument("--texts", type=Path, required=True, help="corpus.parquet of a run")
    parser.add_argument("--examples", type=int, default=140)
    parser.add_argument("--padded", type=int, default=6, help="examples of the padded way")
    parser.add_argument("--batch", type=int, default=8, help="of the Trainer")
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", choices=WAYS, help="only this one, in this process")
    parser.add_argument("--out", type=Path, default=Path("results/benchmark_scoring.json"))
    settings = parser.parse_args()
    if settings.way:
        print(json.dumps(run(settings.way, settings)))
        return
    found = []
    for way in WAYS:
        command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    show(found)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def show(found: list[dict]) -> None:
    """A line a way; ratios are to `padded` and `grouped`."""
    rates = {line["way"]: line["tokens_per_second"] for line in found}
    peers = {line["way"]: line for line in found}
    for line in found:
        common = min(len(line["losses"]), len(peers["grouped"]["losses"]))
        pairs = zip(line["losses"][:common], peers["grouped"]["losses"][:common], strict=True)
        print(
            f"{line['way']:8} {line['tokens_per_second']:7.0f} tokens/s"
            f"  x padded {line['tokens_per_second'] / rates['padded']:5.1f}"
            f"  x grouped {line['tokens_per_second'] / rates['grouped']:5.2f}"
            f"  share {line['share']:.2f}  peak {line['peak_mb']:.0f} MB"
            f"  first batch {line['seconds_to_first_batch']:.1f} s"
            f"  furthest loss {max(abs(a - b) for a, b in pairs):.1e}"
        )


if __name__ == "__main__":
    main()
