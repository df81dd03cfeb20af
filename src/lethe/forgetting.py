"""One measurement: fine-tune a base model on a stream of examples and score what it lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lethe import models, rows
from lethe.config.models import Recipe, Scoring
from lethe.data.examples import Example, UpstreamExample, upstream_digest
from lethe.data.tokens import Tokenised, tokenise
from lethe.scoring import Scores, score
from lethe.training import Trained, fine_tune, planned_steps, stream


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


@dataclass(frozen=True)
class Job:
    """One fine-tune: a base model (`card`) with its losses, a task's examples, how to train.

    `base` is the row of the untouched model; losses before always come from it, never from the
    model in hand.
    """

    card: dict[str, Any]
    base: rows.Row
    train: Sequence[Example]
    evaluation: Sequence[Example]
    recipe: Recipe
    scoring: Scoring
    gpu: int = 0

    def run(
        self,
        upstream: Sequence[UpstreamExample],
        replayed: Sequence[UpstreamExample] = (),
        accounting: str = "add",
        title: str = "fine-tuning",
    ) -> tuple[Any, Any, rows.Row]:
        """Fine-tunes the base model and scores `upstream` again.

        `replayed` upstream examples are mixed in evenly (`lethe.replay.mixture`).

        Returns
        -------
        The fine-tuned model, its tokenizer, and the row of the examples in `upstream`.
        """
        model, tokenizer = models.load(self.card, self.scoring.dtype, self.gpu)
        own = self._evaluation_tokens(tokenizer)
        before = self._score(model, own, "own task, before")
        tokens, cut = _training_tokens(tokenizer, self.train, replayed, self.recipe, accounting)
        model, trained = self._fine_tune(model, tokens, title)
        measured = _upstream_tokens(tokenizer, upstream, self.scoring)
        after = self._score(model, measured, f"{title}, upstream")
        own_after = self._score(model, own, f"{title}, own task")
        about = _counts(measured, after) | _training_facts(trained, cut)
        about |= _own_task(before, own_after) | {"versions": models.versions()}
        ids = [example.example_id for example in upstream]
        settings = {**self.base.settings, "recipe": self.recipe.model_dump()}
        losses = self.base.select(ids).loss_before
        return model, tokenizer, rows.Row(ids, losses, after.losses, after.tokens, settings, about)

    def _fine_tune(self, model: Any, tokens: Sequence, title: str) -> tuple[Any, Trained]:
        if self.recipe.lora is not None:
            model = models.add_lora(model, self.recipe.lora, self.recipe.seed)
            return model, fine_tune(model, tokens, self.recipe, title)
        if self.scoring.dtype == "float32":
            return model, fine_tune(model, tokens, self.recipe, title)
        # Steps of 1e-6 are lost when they are added to bfloat16 weights: others are trained.
        exact, _ = models.load(self.card, "float32", self.gpu)
        trained = fine_tune(exact, tokens, self.recipe, title)
        for parameter, value in zip(model.parameters(), exact.parameters(), strict=True):
            parameter.data.copy_(value.data)
        return model, trained

    def _evaluation_tokens(self, tokenizer: Any) -> Tokenised:
        return tokenise(
            tokenizer,
            self.evaluation,
            self.recipe.max_tokens,
            self.recipe.truncation,
            self.scoring.include_eos,
        )

    def _score(self, model: Any, tokens: Tokenised, title: str) -> Scores:
        return score(model, tokens.examples, self.scoring.tokens_per_batch, title)


def _training_facts(trained: Trained, cut: Tokenised) -> dict[str, Any]:
    return {
        "steps": trained.steps,
        "training_loss_first": trained.first_loss,
        "training_loss_last": trained.last_loss,
        "training_truncated": cut.truncated,
        "training_empty": cut.empty,
        "training_tokens_per_second": trained.tokens / max(trained.seconds, 1e-9),
        "training_seconds": trained.seconds,
    }


def _own_task(before: Scores, after: Scores) -> dict[str, Any]:
    return {
        "eval_loss_before": _mean(before.losses),
        "eval_loss_after": _mean(after.losses),
        "eval_missing": int(np.isnan(after.losses).sum()),
    }


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
