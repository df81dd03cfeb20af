r"""What replay costs in training: time and memory with and without it, as ratios of one run.

    python benchmarks/replay.py results/default/olmo-0.7m/base \
        --tasks results/default/tasks/*/train.parquet --upstream results/default/upstream.parquet

Ways, all with the same new examples:

- `plain`: the fine-tune without replay;
- `text`: replayed texts mixed into the stream, the paper's way;
- `kl`: KL(base || model) on the replayed tokens, a frozen copy of the base model runs beside the
  model;
- `stored`: the same from distributions that are stored before the first step (`--top-k` words);
- `prompt`: KL at the prompts of the new examples, without upstream data.

The claim: at 1 replayed example in 8, `kl` takes at most 1.35 times the seconds of `plain`, and
`stored` at most 1.25 times.

The ways take their steps in turns in one process, so the load of a shared machine falls on all of
them; each takes one step beforehand that is not timed. Ratios are of the sums over all steps, by
the wall clock and by the processor's time. `setup` is the processor's time before the first step of
`stored`, as a share of `plain`. Here every replayed example is replayed once, so its storing is not
spread over several uses. Memory is the peak of a process of its own that takes two steps. At the
end the trained models are compared with the base model, by all words and by the `k` most probable.
"""

import argparse
import copy
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from training import pairs

WAYS = ("plain", "text", "kl", "stored", "prompt")
LIMITS = {"kl": 1.35, "stored": 1.25}
TOP_K = (4, 16, 64, 256, 1024)


def load(settings: argparse.Namespace) -> tuple[Any, list, list]:
    """The base model, new examples, and upstream examples, both as tokens."""
    import torch
    import transformers

    from lethe.data.examples import read_upstream
    from lethe.data.tokens import tokenise
    from lethe.engine import models

    torch.set_num_threads(settings.threads)
    models.use_machine(settings.threads, 0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(settings.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        settings.model, dtype=torch.float32, use_safetensors=True
    )
    count = settings.batch * settings.steps
    new = pairs(tokenizer, settings.tasks, count, settings.max_tokens)[:count]
    new = (new * -(-count // len(new)))[:count]
    texts = []
    for example in read_upstream(settings.upstream):
        if example.split == "replayable":
            texts.append(example.example)
    # Every so-many-th, so that all domains are among them.
    replayed = max(1, round(settings.ratio * count))
    chosen = texts[:: max(1, len(texts) // replayed)][:replayed]
    return model, new, tokenise(tokenizer, chosen, settings.max_tokens).examples


def term_of(way: str, upstream: list, settings: argparse.Namespace) -> Any:
    """The replay term of a way, or None."""
    from lethe.engine.objectives import ReplayTerm

    if way in ("plain", "prompt"):
        return None
    if way == "text":
        return ReplayTerm(upstream)
    teacher = "stored" if way == "stored" else "live"
    return ReplayTerm(
        upstream,
        objective="kl",
        weight=4.0,
        dose=settings.dose,
        teacher=teacher,
        top_k=settings.top_k,
    )


class Run:
    """One way's model and training loop, and what its steps took."""

    def __init__(self, way: str, base: Any, new: list, upstream: list, settings: Any):
        from lethe.config.model_settings import Recipe
        from lethe.engine.objectives import make_objective, plan_steps
        from lethe.engine.training import _loop_of

        self.way = way
        self.model = copy.deepcopy(base)
        recipe = Recipe(
            batch=settings.batch,
            micro_batch=settings.micro_batch,
            lr=settings.lr,
            warmup_steps=0,
            decay="constant",
            prompt_kl=1.0 if way == "prompt" else None,
        )
        term = term_of(way, upstream, settings)
        self.steps = plan_steps(new, term, recipe.batch)
        began, processor = time.perf_counter(), time.process_time()
        objective = make_objective(self.model, recipe, self.steps, term)
        self.setup = time.perf_counter() - began
        self.setup_processor = time.process_time() - processor
        self.loop = _loop_of(
            self.model, recipe, steps=len(self.steps), objective=objective, upstream=()
        )
        self.model.train()
        self.seconds = self.processor = 0.0
        self.taken = 0

    def take(self, number: int, timed: bool = True) -> None:
        """Takes the step of this number, if there is one."""
        if number >= len(self.steps):
            return
        began, processor = time.perf_counter(), time.process_time()
        self.loop.take(self.steps[number], number, self.way)
        if timed:
            self.seconds += time.perf_counter() - began
            self.processor += time.process_time() - processor
            self.taken += 1

    def record(self, new: list) -> dict[str, Any]:
        """Steps, tokens and seconds."""
        replayed = [example for step in self.steps for example in step.replayed]
        tokens = sum(len(example.ids) for example in new)
        return {
            "way": self.way,
            "steps": self.taken,
            "new_tokens": tokens,
            "replayed_tokens": sum(len(example.ids) for example in replayed),
            "seconds": self.seconds,
            "processor_seconds": self.processor,
            "setup_seconds": self.setup if self.way == "stored" else 0.0,
            "setup_processor_seconds": self.setup_processor if self.way == "stored" else 0.0,
            "new_tokens_per_second": tokens / self.seconds,
        }


def measure_time(settings: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """Seconds of every way, and the divergence of trained models by all and by few words."""
    base, new, upstream = load(settings)
    runs = [Run(way, base, new, upstream, settings) for way in settings.ways]
    for run in runs:
        run.take(0, timed=False)
    for number in range(max(len(run.steps) for run in runs)):
        # Each starts a round in turn, so that none always meets the cache of the same other.
        first = number % len(runs)
        for run in runs[first:] + runs[:first]:
            run.take(number)
    errors = []
    for run in runs:
        errors.append({"way": run.way, **divergences(run.model, base, upstream)})
    return [run.record(new) for run in runs], errors


def divergences(model: Any, base: Any, examples: list) -> dict[str, float]:
    """Mean KL(base || model) per token of the examples: all words, and the k most probable."""
    import torch

    from lethe.engine.batches import collate, position_logits
    from lethe.engine.divergence import LogitTargets, StoredTargets

    sums = dict.fromkeys(("all", *map(str, TOP_K)), 0.0)
    tokens = 0
    model.eval()
    base.eval()
    with torch.no_grad():
        for example in examples:
            batch = collate([example])
            positions = batch.mask[:, 1:]
            logits = position_logits(model, batch.ids, positions)
            base_logits = position_logits(base, batch.ids, positions)
            tokens += len(logits)
            sums["all"] += LogitTargets(base_logits).divergence(logits).sum().item()
            for k in TOP_K:
                targets = StoredTargets.of(base_logits, k)
                sums[str(k)] += targets.divergence(logits).sum().item()
    return {key: total / tokens for key, total in sums.items()}


def measure_memory(settings: argparse.Namespace) -> float:
    """Peak memory in MB of this process, after two steps of one way."""
    # Nothing here keeps the base model, so that only a way with a teacher holds two models.
    run = Run(settings.ways[0], *load(settings), settings)
    # The first steps that replay something.
    numbers = [i for i, step in enumerate(run.steps) if step.replayed] or [0, 1]
    for number in numbers[:2]:
        run.take(number)
    # ru_maxrss would be no less than the parent's peak, which has taken the steps of all ways.
    status = Path("/proc/self/status").read_text("utf-8")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def main() -> None:
    """Times all ways in turns, measures their memory apart, prints tables and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, help="folder of a model")
    parser.add_argument("--tasks", type=Path, nargs="+", required=True, help="train.parquet files")
    parser.add_argument("--upstream", type=Path, required=True, help="upstream.parquet")
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS))
    parser.add_argument("--dose", choices=("token", "step"), default="token")
    parser.add_argument("--ratio", type=float, default=1 / 8)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, default=None)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--top-k", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="only the memory of the first way")
    parser.add_argument("--out", type=Path, default=Path("results/benchmark_replay.json"))
    settings = parser.parse_args()
    if settings.memory:
        print(json.dumps(measure_memory(settings)))
        return
    lines, errors = measure_time(settings)
    for line in lines:
        # The last of a repeated argument counts.
        arguments = [*sys.argv[1:], "--ways", line["way"], "--memory"]
        command = [sys.executable, __file__, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        line["peak_mb"] = json.loads(done.stdout.splitlines()[-1])
    plain = lines[0]
    for line in lines:
        line["ratio"] = line["seconds"] / plain["seconds"]
        line["processor_ratio"] = line["processor_seconds"] / plain["processor_seconds"]
        setup = line["setup_processor_seconds"] / plain["processor_seconds"]
        limit = f"  limit {LIMITS[line['way']]}" if line["way"] in LIMITS else ""
        print(
            f"{line['way']:7} {line['new_tokens_per_second']:8.1f} new tokens/s"
            f"  time x plain {line['ratio']:.2f} (processor {line['processor_ratio']:.2f}"
            f", setup {setup:.2f})"
            f"  peak {line['peak_mb']:.0f} MB x {line['peak_mb'] / plain['peak_mb']:.2f}{limit}"
        )
    print("\nKL(base || model) per replayed token after the steps; share of it that k words give")
    for error in errors:
        shares = [f"{k}: {error[str(k)] / max(error['all'], 1e-12):.3f}" for k in TOP_K]
        print(f"{error['way']:7} {error['all']:.2e} nats  {'  '.join(shares)}")
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"ways": lines, "divergences": errors}
    settings.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
