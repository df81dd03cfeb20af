"""One measurement: fine-tune a base model on a stream of examples and score what it lost."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lethe import models, rows
from lethe.config import Recipe, Scoring
from lethe.data.examples import Example, UpstreamExample, upstream_digest
from lethe.data.tokens import Tokenised, tokenise
from lethe.scoring import Scores, score
from lethe.training import fine_tune, planned_steps, stream


def base_losses(
    model: Any,
    tokenizer: Any,
    upstream: Sequence[UpstreamExample],
    settings: dict,
    scoring: Scoring,
) -> rows.Row:
    """Losses of the untouched base model, as a row whose two losses are the same."""
    tokens = _upstream_tokens(tokenizer, upstream, scoring)
    scores = score(model, tokens.examples, scoring.tokens_per_batch, "upstream, base")
    ids = [example.example_id for example in upstream]
    shared = {**settings, "upstream": upstream_digest(upstream)}
    about = _counts(tokens, scores) | {"versions": models.versions()}
    return rows.Row(ids, scores.losses, scores.losses, scores.tokens, shared, about)


def measure(
    model: Any,
    tokenizer: Any,
    task: tuple[Sequence[Example], Sequence[Example]],
    upstream: Sequence[UpstreamExample],
    base: rows.Row,
    recipe: Recipe,
    scoring: Scoring,
    replayed: Sequence[UpstreamExample] = (),
    accounting: str = "add",
    title: str = "fine-tuning",
) -> tuple[Any, rows.Row]:
    """Fine-tunes on a task's (training, evaluation) examples and scores `upstream` again.

    `replayed` upstream examples are mixed in evenly (`lethe.replay.mixture`); losses before come
    from `base`, the row of the untouched model, never from the model in hand.

    Returns
    -------
    The fine-tuned model, and the row of the examples in `upstream`.
    """
    train, evaluation = task
    evaluated = tokenise(
        tokenizer, evaluation, recipe.max_tokens, recipe.truncation, scoring.include_eos
    )
    before = score(model, evaluated.examples, scoring.tokens_per_batch, "own task, before")
    tokens, cut = _training_tokens(tokenizer, train, replayed, recipe, accounting)
    if recipe.lora is not None:
        model = models.add_lora(model, recipe.lora, recipe.seed)
    trained = fine_tune(model, tokens, recipe, title)
    measured = _upstream_tokens(tokenizer, upstream, scoring)
    after = score(model, measured.examples, scoring.tokens_per_batch, "upstream")
    own = score(model, evaluated.examples, scoring.tokens_per_batch, "own task, after")
    ids = [example.example_id for example in upstream]
    chosen = _places(base, ids)
    about = _counts(measured, after) | {
        "steps": trained.steps,
        "training_loss_first": trained.first_loss,
        "training_loss_last": trained.last_loss,
        "training_truncated": cut.truncated,
        "training_empty": cut.empty,
        "training_tokens_per_second": trained.tokens / max(trained.seconds, 1e-9),
        "training_seconds": trained.seconds,
        "eval_loss_before": _mean(before.losses),
        "eval_loss_after": _mean(own.losses),
        "eval_missing": int(np.isnan(own.losses).sum()),
        "versions": models.versions(),
    }
    row = rows.Row(
        ids, base.loss_before[chosen], after.losses, after.tokens, dict(base.settings), about
    )
    return model, row


def _training_tokens(
    tokenizer: Any,
    train: Sequence[Example],
    replayed: Sequence[UpstreamExample],
    recipe: Recipe,
    accounting: str,
) -> tuple[list, Tokenised]:
    from lethe.replay.mixture import mix

    cut = tokenise(tokenizer, train, recipe.max_tokens, recipe.truncation)
    usable = [example for example in cut.examples if example.scored]
    new = stream(len(usable), planned_steps(recipe, len(train)) * recipe.batch, recipe.seed)
    old = tokenise(
        tokenizer, [e.example for e in replayed], recipe.max_tokens, recipe.truncation
    ).examples
    return mix([usable[i] for i in new], old, accounting), cut


def _upstream_tokens(
    tokenizer: Any, upstream: Sequence[UpstreamExample], scoring: Scoring
) -> Tokenised:
    examples = [example.example for example in upstream]
    return tokenise(tokenizer, examples, scoring.max_tokens, "right", scoring.include_eos)


def _places(base: rows.Row, ids: list[str]) -> np.ndarray:
    place = {example_id: i for i, example_id in enumerate(base.example_ids)}
    return np.array([place[example_id] for example_id in ids], dtype=int)


def _counts(tokens: Tokenised, scores: Scores) -> dict[str, Any]:
    return {
        "truncated": tokens.truncated,
        "empty": tokens.empty,
        "missing": int(np.isnan(scores.losses).sum()),
        "scoring_seconds": scores.seconds,
        "scoring_tokens_per_second": scores.tokens_per_second,
        "peak_memory_mb": models.peak_memory_mb(),
    }


def _mean(losses: np.ndarray) -> float:
    return float(np.nanmean(losses)) if np.isfinite(losses).any() else float("nan")
