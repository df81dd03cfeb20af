"""Speed of training and scoring on this machine, from a few steps on the experiment's examples."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lethe.config.model_settings import Recipe, Scoring
from lethe.data.examples import Example, UpstreamExample, ids_of
from lethe.data.tokens import Tokens, lengths, tokenise
from lethe.engine import models
from lethe.engine.reader import Reader
from lethe.engine.scoring import score
from lethe.engine.training import fine_tune
from lethe.errors import LetheError
from lethe.matrix import rows
from lethe.measure.exact_match import Questions

# Examples whose tokens are counted: enough for a mean within a few percent.
COUNTED = 200


@dataclass(frozen=True)
class Sample:
    """Examples for the calibration: training and evaluation examples by task, and upstream."""

    train: Mapping[str, Sequence[Example]]
    evaluation: Mapping[str, Sequence[Example]]
    upstream: Sequence[UpstreamExample]


def calibrate_model(
    load: Callable[[], tuple[Any, Any]],
    sample: Sample,
    *,
    recipe: Recipe,
    scoring: Scoring,
    steps: int,
    examples: int,
) -> dict[str, Any]:
    """Measures the rates, sizes and token counts that `lethe.cost.plan` multiplies.

    Parameters
    ----------
    load
        Returns the model and its tokenizer. Weights may be random, because speed does not depend
        on them.
    steps
        Steps of training that are timed, after one step that is not.
    examples
        Number of upstream examples that are scored.

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
    start = time.perf_counter()
    model, tokenizer = load()
    load_seconds = time.perf_counter() - start
    # Scoring and training use two copies of the model in these cases (`lethe.measure.forgetting`).
    two_copies = recipe.processes > 1 or scoring.weights != "float32"
    parameters = list(model.parameters())
    counts = {}
    for task in sample.train:
        counts[task] = _task_counts(tokenizer, sample, task, recipe=recipe, scoring=scoring)
    stride = max(1, len(sample.upstream) // examples)
    texts = [example.example for example in sample.upstream[::stride][:examples]]
    tokens = tokenise(
        tokenizer,
        texts,
        max_tokens=scoring.max_tokens,
        truncation="right",
        include_eos=scoring.include_eos,
    ).examples
    calibration = {
        "device": models.versions()["device"],
        "parameters": sum(p.numel() for p in parameters),
        "weight_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "load_seconds": load_seconds,
        "loads": 2 if two_copies else 1,
        "upstream_tokens": _mean_length(tokens),
        "tasks": counts,
        "row_bytes": _row_bytes(sample.upstream),
        "scoring_tokens_per_second": _scoring_rate(model, tokens, scoring),
        "answer_seconds": _answer_seconds(model, tokenizer, texts, scoring=scoring),
    }
    if two_copies:
        # The first copy is released before the second is loaded.
        del parameters
        model = None
        model, _ = load()
        model.float()
    calibration["training_tokens_per_second"] = _training_rate(
        model, tokenizer, sample, recipe=recipe, steps=steps
    )
    calibration["peak_memory_mb"] = models.peak_memory_mb()
    return calibration


def _task_counts(
    tokenizer: Any, sample: Sample, task: str, *, recipe: Recipe, scoring: Scoring
) -> dict[str, float]:
    """Numbers of a task's examples, mean training tokens, and tokens of the evaluation examples."""
    train = sample.train[task]
    evaluation = sample.evaluation[task]
    train_tokens = tokenise(
        tokenizer,
        train[:COUNTED],
        max_tokens=recipe.max_tokens,
        truncation=recipe.truncation,
    ).examples
    evaluation_tokens = tokenise(
        tokenizer,
        evaluation[:COUNTED],
        max_tokens=recipe.max_tokens,
        truncation=recipe.truncation,
        include_eos=scoring.include_eos,
    ).examples
    return {
        "examples": len(train),
        "tokens": _mean_length(train_tokens),
        "eval_tokens": _mean_length(evaluation_tokens) * len(evaluation),
        "eval_examples": len(evaluation),
    }


def _mean_length(tokens: Sequence[Tokens]) -> float:
    return float(lengths(tokens).mean()) if tokens else 0.0


def _scoring_rate(model: Any, tokens: Sequence[Tokens], scoring: Scoring) -> float:
    with models.autocast_for(model, scoring.dtype):
        score(model, tokens[:2], scoring.budget, title="first batch")
        seconds = score(model, tokens, scoring.budget, title="scoring").seconds
    return sum(len(example.ids) for example in tokens if example.scored) / seconds


def _answer_seconds(
    model: Any, tokenizer: Any, examples: Sequence[Example], *, scoring: Scoring
) -> float | None:
    if scoring.exact_match is None:
        return None
    questions = Questions.of(tokenizer, examples, scoring)
    start = time.perf_counter()
    questions.ask(Reader(model, tokenizer, scoring))
    return (time.perf_counter() - start) / len(examples)


def _training_rate(
    model: Any, tokenizer: Any, sample: Sample, *, recipe: Recipe, steps: int
) -> float:
    """Tokens per second of training, over `steps` steps on examples of all tasks in turn."""
    count = recipe.batch * (steps + 1)
    mixed = _examples_in_turn(sample.train, count=count)
    tokens = tokenise(
        tokenizer, mixed, max_tokens=recipe.max_tokens, truncation=recipe.truncation
    ).examples
    usable = [example for example in tokens if example.scored]
    if not usable:
        raise LetheError(
            "plan: no training example of any task carries loss; check the answers of the tasks, "
            "and whether recipe.max_tokens cuts them off"
        )
    repetitions = math.ceil(count / len(usable))
    usable = (usable * repetitions)[:count]
    # The penalties towards the base cost little per step and need upstream examples.
    timed_recipe = recipe.model_copy(update={"l2": 0.0, "ewc": 0.0})
    if recipe.processes > 1:
        # A model is sharded only once, so its first step is timed with the others.
        return _tokens_per_second(model, usable, timed_recipe)
    _tokens_per_second(model, usable[: recipe.batch], timed_recipe)
    return _tokens_per_second(model, usable[recipe.batch :], timed_recipe)


def _tokens_per_second(model: Any, tokens: Sequence[Tokens], recipe: Recipe) -> float:
    trained = fine_tune(model, tokens, recipe, title="training")
    return trained.tokens / trained.seconds


def _examples_in_turn(tasks: Mapping[str, Sequence[Example]], *, count: int) -> list[Example]:
    """About `count` examples: the first of each task, then the second of each, and so on."""
    mixed = []
    for i in range(math.ceil(count / len(tasks))):
        mixed += [examples[i] for examples in tasks.values() if i < len(examples)]
    return mixed


def _row_bytes(upstream: Sequence[UpstreamExample]) -> float:
    """Bytes of a row file per upstream example, from a row of random losses."""
    losses = np.random.default_rng(0).normal(size=len(upstream)).astype(np.float32)
    example_ids = ids_of(upstream)
    row = rows.Row(
        example_ids, losses, losses + 1, np.ones(len(example_ids), np.int32), settings={}
    )
    with TemporaryDirectory() as folder:
        path = Path(folder, "row.parquet")
        rows.write_row(path, row)
        return path.stat().st_size / max(len(example_ids), 1)
