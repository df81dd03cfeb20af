"""How fast a model is trained and scored here, from a few steps on the experiment's examples."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lethe.config.model_settings import Recipe, Scoring
from lethe.data.examples import Example, UpstreamExample
from lethe.data.tokens import Tokens, tokenise
from lethe.engine import models
from lethe.engine.scoring import score
from lethe.engine.training import fine_tune
from lethe.errors import LetheError
from lethe.matrix import rows
from lethe.measure.exact_match import Questions

# Examples whose tokens are counted: enough for a mean within a few percent.
COUNTED = 200


@dataclass(frozen=True)
class Sample:
    """What a model is tried on: tasks' training and evaluation examples, and upstream examples."""

    train: Mapping[str, Sequence[Example]]
    evaluation: Mapping[str, Sequence[Example]]
    upstream: Sequence[UpstreamExample]


def calibrate(
    load: Callable[[], tuple[Any, Any]],
    sample: Sample,
    recipe: Recipe,
    scoring: Scoring,
    steps: int,
    examples: int,
) -> dict[str, Any]:
    """Rates, sizes and token counts that `lethe.cost.plan` multiplies.

    Parameters
    ----------
    load
        Gives the model and its tokenizer; weights may be random, speed does not depend on them.
    steps
        Steps of training that are timed, after one that is not.
    examples
        Upstream examples that are scored.

    Returns
    -------
    Tokens per second of training and scoring (prompts count), seconds to load and per answer,
    bytes of the weights and of a row per example, peak memory in MB, device, and mean tokens of
    upstream examples and of each task's.

    Raises
    ------
    LetheError
        If no task has an example that carries loss.
    """
    began = time.perf_counter()
    model, tokenizer = load()
    load_seconds = time.perf_counter() - began
    # What is scored and what is trained are two models then (`lethe.measure.forgetting`).
    twice = recipe.processes > 1 or scoring.weights != "float32"
    parameters = list(model.parameters())
    counts = {task: _counts(tokenizer, sample, task, recipe, scoring) for task in sample.train}
    upstream = list(sample.upstream[:: max(1, len(sample.upstream) // examples)])[:examples]
    texts = [example.example for example in upstream]
    tokens = tokenise(tokenizer, texts, scoring.max_tokens, "right", scoring.include_eos).examples
    found = {
        "device": models.versions()["device"],
        "parameters": sum(p.numel() for p in parameters),
        "weight_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "load_seconds": load_seconds,
        "loads": 2 if twice else 1,
        "upstream_tokens": _mean(tokens),
        "tasks": counts,
        "row_bytes": _row_bytes(sample.upstream),
        "scoring_tokens_per_second": _scoring_rate(model, tokens, scoring),
        "answer_seconds": _answer_seconds(model, tokenizer, texts, scoring),
    }
    if twice:
        model = None
        model, _ = load()
        model.float()
    found["training_tokens_per_second"] = _training_rate(model, tokenizer, sample, recipe, steps)
    return found | {"peak_memory_mb": models.peak_memory_mb()}


def _counts(
    tokenizer: Any, sample: Sample, task: str, recipe: Recipe, scoring: Scoring
) -> dict[str, float]:
    """Of one task: its training examples, their mean tokens, the evaluation examples' tokens."""
    train, evaluation = sample.train[task], sample.evaluation[task]
    read = tokenise(tokenizer, train[:COUNTED], recipe.max_tokens, recipe.truncation).examples
    own = tokenise(
        tokenizer, evaluation[:COUNTED], recipe.max_tokens, recipe.truncation, scoring.include_eos
    ).examples
    return {
        "examples": len(train),
        "tokens": _mean(read),
        "eval_tokens": _mean(own) * len(evaluation),
        "eval_examples": len(evaluation),
    }


def _mean(tokens: Sequence[Tokens]) -> float:
    return float(np.mean([len(example.ids) for example in tokens])) if tokens else 0.0


def _scoring_rate(model: Any, tokens: Sequence[Tokens], scoring: Scoring) -> float:
    with models.computing(model, scoring.dtype):
        score(model, tokens[:2], scoring.budget, "first batch")
        seconds = score(model, tokens, scoring.budget, "scoring").seconds
    return sum(len(example.ids) for example in tokens if example.scored) / seconds


def _answer_seconds(
    model: Any, tokenizer: Any, examples: Sequence[Example], scoring: Scoring
) -> float | None:
    if scoring.exact_match is None:
        return None
    questions = Questions.of(tokenizer, examples, scoring)
    began = time.perf_counter()
    with models.computing(model, scoring.dtype):
        questions.ask(model, tokenizer, title="answering")
    return (time.perf_counter() - began) / len(examples)


def _training_rate(model: Any, tokenizer: Any, sample: Sample, recipe: Recipe, steps: int) -> float:
    wanted = recipe.batch * (steps + 1)
    each = -(-wanted // len(sample.train))
    columns = [train[:each] for train in sample.train.values()]
    mixed = [column[i] for i in range(each) for column in columns if i < len(column)]
    tokens = tokenise(tokenizer, mixed, recipe.max_tokens, recipe.truncation).examples
    usable = [example for example in tokens if example.scored]
    if not usable:
        raise LetheError("plan: no training example of any task carries loss")
    usable = (usable * -(-wanted // len(usable)))[:wanted]
    # What holds to the base costs a little a step and needs upstream examples: not tried.
    tried = recipe.model_copy(update={"l2": 0.0, "ewc": 0.0})
    parts = usable[: recipe.batch], usable[recipe.batch :]
    if recipe.processes > 1:
        # A model is sharded once; its first step is timed with the others.
        parts = (usable,)
    for part in parts:
        done = fine_tune(model, part, tried, "training")
    return done.tokens / done.seconds


def _row_bytes(upstream: Sequence[UpstreamExample]) -> float:
    """Bytes of a row per upstream example, from one of random losses."""
    losses = np.random.default_rng(0).normal(size=len(upstream)).astype(np.float32)
    ids = [example.example_id for example in upstream]
    with TemporaryDirectory() as folder:
        path = Path(folder, "row.parquet")
        rows.write(path, rows.Row(ids, losses, losses + 1, np.ones(len(ids), np.int32), {}))
        return path.stat().st_size / max(len(ids), 1)
