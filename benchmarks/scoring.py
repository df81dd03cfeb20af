"""Scoring against transformers' Trainer: same examples, same model, one run.

    python benchmarks/scoring.py results/smollm2/smollm2-135m/base
    python benchmarks/scoring.py results/smollm2/smollm2-135m/base --threads 1 --rounds 3

The folder is a model in safetensors with its tokenizer; `snakemake --configfile
experiments/smollm2.yaml results/smollm2/smollm2-135m/model.json` makes the one above, `snakemake`
the text. A scratch model of the default experiment's size, with random weights, comes along.

    a  Trainer.evaluate, every example padded to 1,024 tokens (the first few examples: --padded)
    b  Trainer.evaluate, dynamic padding and length grouping: the best there is without lethe
    c  lethe.engine.scoring.score

Trainer returns the mean loss only, lethe one an example: (a) and (b) do less. Each way runs in a
process of its own, so that peaks of memory (largest resident set) can be compared. Rounds of all
ways take turns in time, as neighbours' load changes; the best round of each counts. Tokens are
real ones, without padding. The matrix-multiply rate is that of a layer's and the output layer's
products with --tokens-per-batch rows, best of the products between rounds of the same process;
the share is 2 x weights x real tokens over seconds and that rate. First batch: seconds from the
start of the process to the model's first forward pass, loading included.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHORTEST, LONGEST, PADDED = 26, 256, 1024
WAYS = {"a": "Trainer, padded to 1,024", "b": "Trainer, by length", "c": "lethe"}


def ragged(tokenizer: Any, text: Path, count: int) -> list[list[int]]:
    """Runs of 26 to 256 tokens out of each domain's text in turn."""
    import pyarrow.parquet as pq

    table = pq.read_table(text, columns=["domain", "text"]).to_pydict()
    domains: dict[str, list[str]] = {}
    for domain, piece in zip(table["domain"], table["text"], strict=True):
        domains.setdefault(domain, []).append(piece or "")
    rng, found = random.Random(0), []
    for number, (_, pieces) in enumerate(sorted(domains.items())):
        ids = tokenizer(" ".join(pieces)[: 2000 * count])["input_ids"]
        while len(ids) >= LONGEST and len(found) < count * (number + 1) / len(domains):
            length = rng.randint(SHORTEST, LONGEST)
            found.append(ids[:length])
            ids = ids[length:]
    rng.shuffle(found)
    return found


def scratch(folder: Path, text: Path) -> None:
    """Saves a model of the default experiment's size with random weights, and its tokenizer."""
    import pyarrow.parquet as pq

    from lethe.config.model_settings import Pretraining
    from lethe.engine import models

    settings = Pretraining(context=LONGEST)
    pieces = [piece for piece in pq.read_table(text)["text"].to_pylist() if piece]
    tokenizer = models.train_tokenizer(pieces, settings.vocabulary)
    tokenizer.save_pretrained(folder)
    model = models.from_scratch("olmo", settings, settings.vocabulary, tokenizer.eos_token_id)
    model.save_pretrained(folder)


def matmul_rate(model: Any, rows: int) -> float:
    """FLOP a second of the model's matrices times `rows` rows, each kind of matrix once."""
    import torch

    counts: dict[tuple[int, int], int] = {}
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear):
            shape = (layer.out_features, layer.in_features)
            counts[shape] = counts.get(shape, 0) + 1
    work = seconds = 0.0
    for shape, count in counts.items():
        states, weights = torch.randn(rows, shape[1]), torch.randn(shape)
        taken = []
        for _ in range(4):
            began = time.perf_counter()
            torch.nn.functional.linear(states, weights)
            taken.append(time.perf_counter() - began)
        work += count * 2.0 * rows * shape[0] * shape[1]
        seconds += count * min(taken)
    return work / seconds


def by_trainer(folder: Path, examples: list[list[int]], padded: bool, batch: int):
    """The model and a call that evaluates the examples with transformers' Trainer."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token

    def collate(lines: list[dict]) -> dict:
        given = {"padding": "max_length", "max_length": PADDED} if padded else {}
        made = dict(tokenizer.pad(lines, return_tensors="pt", **given))
        made["labels"] = made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)
        return made

    settings = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_eval_batch_size=batch,
        prediction_loss_only=True,
        train_sampling_strategy="random" if padded else "group_by_length",
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model, settings, data_collator=collate, processing_class=tokenizer
    )
    lines = [{"input_ids": ids} for ids in examples]
    return model, lambda: trainer.evaluate(lines)["eval_loss"]


def by_lethe(folder: Path, examples: list[list[int]], tokens_per_batch: int):
    """The model and a call that scores the examples with this library."""
    import numpy as np
    import torch

    from lethe.data.tokens import Tokens
    from lethe.engine import models
    from lethe.engine.scoring import score

    models.use_machine(torch.get_num_threads(), 0)
    model, _ = models.load({"path": str(folder)})
    tokens = [Tokens(ids, 1) for ids in examples]
    return model, lambda: float(np.mean(score(model, tokens, tokens_per_batch).losses))


def work(settings: argparse.Namespace) -> None:
    """One way, in this process: a line of JSON for every round that standard input asks for."""
    import torch

    torch.set_num_threads(settings.threads)
    examples = json.loads(settings.examples.read_text())
    if settings.way == "c":
        model, call = by_lethe(settings.model, examples, settings.tokens_per_batch)
    else:
        model, call = by_trainer(settings.model, examples, settings.way == "a", settings.batch)
    starts: list[float] = []
    hook = model.register_forward_pre_hook(lambda *_: starts.append(time.time()))
    with torch.inference_mode():
        print(json.dumps({"parameters": weights(model)}), flush=True)
        for _ in sys.stdin:
            began = time.perf_counter()
            loss = call()
            seconds = time.perf_counter() - began
            hook.remove()
            peak = peak_mb()
            rate = matmul_rate(model, settings.tokens_per_batch)
            line = {"seconds": seconds, "loss": loss, "first": starts[0], "peak_mb": peak}
            print(json.dumps(line | {"rate": rate}), flush=True)


def weights(model: Any) -> int:
    """Weights of the matrices that each token is multiplied by."""
    import torch

    return sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))


def peak_mb() -> float:
    """Largest resident set of this process so far, in MB."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def start(way: str, model: Path, examples: Path, settings: argparse.Namespace):
    """A process of one way, ready for its first round, and when it was started."""
    command = [sys.executable, __file__, str(model), "--way", way, "--examples", str(examples)]
    for key in ("threads", "batch", "tokens_per_batch"):
        command += [f"--{key.replace('_', '-')}", str(getattr(settings, key))]
    environment = dict(os.environ, TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    began = time.time()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, text=True, env=environment, **pipes)
    return process, began, answer(process)


def answer(process: subprocess.Popen) -> dict:
    """The next line of JSON; whatever else libraries print is passed over."""
    for line in process.stdout:
        if line.startswith('{"'):
            return json.loads(line)
    raise SystemExit(f"{' '.join(process.args)}: ended before it answered; run it by hand")


def compare(model: Path, lengths: dict[str, list], settings: argparse.Namespace) -> list[dict]:
    """A line a way. Rounds take turns: the first ones start the processes one after another."""
    started, rounds = {}, {way: [] for way in lengths}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(settings.rounds):
            for way, examples in lengths.items():
                # Padded to 1,024 a round takes long enough to need no repetition.
                if number and way == "a":
                    continue
                if number == 0:
                    path = Path(folder) / f"{way}.json"
                    path.write_text(json.dumps(examples))
                    started[way] = start(way, model, path, settings)
                process = started[way][0]
                print("", file=process.stdin, flush=True)
                rounds[way].append(answer(process))
        for process, _, _ in started.values():
            process.communicate()
    return [
        summary(way, lengths[way], rounds[way], began, about["parameters"])
        for way, (_, began, about) in started.items()
    ]


def summary(way: str, examples: list, rounds: list[dict], began: float, parameters: int) -> dict:
    """What the rounds of one way come to."""
    tokens = sum(map(len, examples))
    best = min(line["seconds"] for line in rounds)
    rate = max(line["rate"] for line in rounds)
    return {
        "way": way,
        "examples": len(examples),
        "tokens": tokens,
        "loss": rounds[0]["loss"],
        "seconds": [line["seconds"] for line in rounds],
        "tokens_per_second": tokens / best,
        "matmul_gflops": rate / 1e9,
        "matmul_share": 2 * parameters * tokens / best / rate,
        "peak_mb": rounds[0]["peak_mb"],
        "first_batch_seconds": rounds[0]["first"] - began,
    }


def show(title: str, lines: list[dict]) -> None:
    """Prints a table; ratios are to (a) and to (b)."""
    print(f"\n{title}")
    speeds = {line["way"]: line["tokens_per_second"] for line in lines}
    peaks = {line["way"]: line["peak_mb"] for line in lines}
    for line in lines:
        for other in "ab":
            line[f"times_{other}"] = line["tokens_per_second"] / speeds[other]
        line["memory_of_b"] = line["peak_mb"] / peaks["b"]
        cells = [
            f"({line['way']}) {WAYS[line['way']]:26}{line['examples']:4} examples",
            f"{line['tokens_per_second']:8.0f} tokens/s",
            f"{line['times_a']:6.1f} x a  {line['times_b']:5.2f} x b",
            f"{line['matmul_share']:.2f} of {line['matmul_gflops']:.0f} GFLOP/s",
            f"{line['peak_mb']:6.0f} MB ({line['memory_of_b']:.2f} of b)",
            f"first batch after {line['first_batch_seconds']:.1f} s",
        ]
        print("  ".join(cells), flush=True)


def main() -> None:
    """Compares the ways on the model that is given and on a small one; prints, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, help="folder of a model")
    parser.add_argument("--text", type=Path, default=Path("results/default/corpus.parquet"))
    parser.add_argument("--count", type=int, default=56, help="examples")
    parser.add_argument("--padded", type=int, default=4, help="how many of them are given to (a)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=8, help="examples of a batch of (a) and (b)")
    parser.add_argument("--tokens-per-batch", type=int, default=1024, help="of lethe's batches")
    parser.add_argument("--out", type=Path, default=Path("results/benchmark_scoring.json"))
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--examples", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.way:
        return work(settings)
    if not settings.text.is_file():
        parser.error(f"{settings.text}: not there; `snakemake {settings.text}` makes it")
    if settings.model and not list(settings.model.glob("*.safetensors")):
        parser.error(f"{settings.model}: no .safetensors; see the head of {__file__}")
    from transformers import AutoTokenizer

    found = []
    with tempfile.TemporaryDirectory() as folder:
        scratch(Path(folder), settings.text)
        for model in filter(None, (settings.model, Path(folder))):
            examples = ragged(AutoTokenizer.from_pretrained(model), settings.text, settings.count)
            lengths = {"a": examples[: settings.padded], "b": examples, "c": examples}
            lines = compare(model, lengths, settings)
            name = "scratch" if model == Path(folder) else model.as_posix()
            show(f"{name}: {settings.threads} threads, {settings.count} ragged examples", lines)
            found += [{"model": name, "threads": settings.threads, **line} for line in lines]
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
