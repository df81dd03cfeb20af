"""One measurement: fine-tune a base model on a stream of examples and score what it lost."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lethe import models, rows
from lethe.checkpoints import Checkpoint, fingerprint, restore_weights, weight_tensors
from lethe.config.models import Recipe, Scoring
from lethe.data.examples import Example, UpstreamExample, upstream_digest
from lethe.data.tokens import Tokenised, tokenise
from lethe.errors import RowError
from lethe.scoring import Scores, score
from lethe.training import Trained, fine_tune, planned_steps, stream


def base_losses(
    model: Any,
    tokenizer: Any,
    upstream: Sequence[UpstreamExample],
    settings: dict,
    scoring: Scoring,
    unfinished: Path | None = None,
) -> rows.Row:
    """Losses of the untouched base model, as a row whose two losses are the same.

    What an interrupted run left in the folder `unfinished` is gone on from.
    """
    tokens = _upstream_tokens(tokenizer, upstream, scoring)
    ids = [example.example_id for example in upstream]
    shared = {**settings, "upstream": upstream_digest(upstream)}
    with Checkpoint(unfinished, fingerprint(shared)) as checkpoint:
        scores = _score_upstream(model, tokens, scoring, "upstream, base", checkpoint)
    about = _counts(tokens, scores) | {"versions": models.versions()}
    return rows.Row(ids, scores.losses, scores.losses, scores.tokens, shared, about)


@dataclass(frozen=True)
class Job:
    """One fine-tune: a base model (`card`) with its losses, a task's examples, how to train.

    `base` is the row of the untouched model; losses before always come from it, never from the
    model in hand. `anchors` are the upstream examples that `recipe.ewc` needs. In the folder
    `unfinished` an interrupted run leaves what it has; `finish` removes it.
    """

    card: dict[str, Any]
    base: rows.Row
    train: Sequence[Example]
    evaluation: Sequence[Example]
    recipe: Recipe
    scoring: Scoring
    gpu: int = 0
    anchors: Sequence[UpstreamExample] = ()
    unfinished: Path | None = None

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

        Raises
        ------
        RowError
            If the base losses are of another model, or were scored with other settings.
        """
        self._check_base()
        model, tokenizer = models.load(self.card, self.scoring.dtype, self.gpu)
        own = self._evaluation_tokens(tokenizer)
        before = self._score(model, own, "own task, before")
        tokens, cut = _training_tokens(tokenizer, self.train, replayed, self.recipe, accounting)
        measured = _upstream_tokens(tokenizer, upstream, self.scoring)
        made_from = self._made_from(upstream, replayed, accounting)
        with Checkpoint(self.unfinished, made_from) as checkpoint:
            model, trained = self._tuned(model, tokenizer, tokens, title, checkpoint)
            weights = partial(_save_weights, checkpoint, model, trained)
            said = f"{title}, upstream"
            after = _score_upstream(model, measured, self.scoring, said, checkpoint, weights)
        own_after = self._score(model, own, f"{title}, own task")
        about = _counts(measured, after) | _training_facts(trained, cut)
        about |= _own_task(before, own_after) | {"versions": models.versions()}
        about |= {"base_versions": self.base.about.get("versions"), "data": self._data()}
        ids = [example.example_id for example in upstream]
        settings = {**self.base.settings, "recipe": self.recipe.model_dump()}
        losses = self.base.select(ids).loss_before
        return model, tokenizer, rows.Row(ids, losses, after.losses, after.tokens, settings, about)

    def finish(self) -> None:
        """Removes what was kept for a run that is interrupted; call it when the row is on disk."""
        Checkpoint(self.unfinished).clear()

    def _check_base(self) -> None:
        mine = {"model": self.card, "scoring": self.scoring.model_dump(mode="json")}
        base = self.base.settings
        if odd := [key for key in mine if base.get(key, mine[key]) != mine[key]]:
            seen = {key: base[key] for key in odd}
            raise RowError(
                f"the base losses were measured with other settings than this job's ({seen}, "
                f"wanted { ({key: mine[key] for key in odd}) }); delete base.parquet and run again"
            )

    def _data(self) -> dict[str, str]:
        """SHA-256 of the task's examples."""
        parts = {"train": self.train, "evaluation": self.evaluation}
        return {name: fingerprint([e.digest() for e in part]) for name, part in parts.items()}

    def _made_from(self, upstream: Sequence, replayed: Sequence, accounting: str) -> str:
        if self.unfinished is None:
            return ""
        settings = [self.card, self.recipe.model_dump(), self.scoring.model_dump(), accounting]
        drawn = [example.example_id for example in replayed]
        return fingerprint(settings, self._data(), upstream_digest(upstream), drawn)

    def _tuned(
        self, model: Any, tokenizer: Any, tokens: Sequence, title: str, checkpoint: Checkpoint
    ) -> tuple[Any, Trained]:
        """The fine-tuned model: trained here, or by the run that was interrupted later on."""
        if self.recipe.lora is not None:
            model = models.add_lora(model, self.recipe.lora, self.recipe.seed)
        if (found := checkpoint.load("weights")) is not None:
            restore_weights(model, found[0])
            return model, Trained(**found[1])
        anchors = _upstream_tokens(tokenizer, self.anchors, self.scoring).examples
        tune = partial(fine_tune, unfinished=checkpoint, upstream=anchors)
        if self.recipe.lora is not None or self.scoring.dtype == "float32":
            return model, tune(model, tokens, self.recipe, title)
        # Steps of 1e-6 are lost when they are added to bfloat16 weights: others are trained.
        exact, _ = models.load(self.card, "float32", self.gpu)
        trained = tune(exact, tokens, self.recipe, title)
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


def _score_upstream(
    model: Any,
    tokens: Tokenised,
    scoring: Scoring,
    title: str,
    checkpoint: Checkpoint,
    save_weights: Callable[[], None] = lambda: None,
) -> Scores:
    """Scores upstream examples, going on from what an interrupted run had scored."""
    found = checkpoint.load("scores")
    known = None if found is None else found[0]["losses"].numpy()

    def after_batch(losses: np.ndarray) -> None:
        if checkpoint.due():
            save_weights()
            checkpoint.save("scores", {"losses": torch.from_numpy(losses)}, {})
            scored = int(np.isfinite(losses).sum())
            checkpoint.leave_if_asked(f"{title}, {scored} of {len(losses)} examples")

    budget = scoring.tokens_per_batch
    return score(model, tokens.examples, budget, title, known=known, after_batch=after_batch)


def _save_weights(checkpoint: Checkpoint, model: Any, trained: Trained) -> None:
    """Once: scoring changes no weight."""
    if checkpoint.load("weights") is None:
        checkpoint.save("weights", weight_tensors(model), asdict(trained))


def _training_facts(trained: Trained, cut: Tokenised) -> dict[str, Any]:
    return {
        "steps": trained.steps,
        "training_loss_first": trained.first_loss,
        "training_loss_last": trained.last_loss,
        "training_truncated": cut.truncated,
        "training_empty": cut.empty,
        "training_tokens_per_second": trained.tokens / max(trained.seconds, 1e-9),
        "training_seconds": trained.seconds,
        "optimizer": trained.optimizer,
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
