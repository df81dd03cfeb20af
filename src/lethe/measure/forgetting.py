"""One measurement: fine-tune a base model on a stream of examples and score what it lost."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lethe.config.model_settings import Recipe, Scoring
from lethe.data.examples import Example, UpstreamExample, ids_of, upstream_digest
from lethe.data.tokens import TokenFile, Tokenised, tokenise
from lethe.engine import distributed, models
from lethe.engine.checkpoints import Checkpoint, fingerprint, restore_weights, weight_tensors
from lethe.engine.scoring import Scores, fitting_budget, score
from lethe.engine.training import Trained, fine_tune, planned_steps, stream
from lethe.errors import RowError
from lethe.matrix import rows
from lethe.measure.exact_match import Questions, keep


def base_losses(
    model: Any,
    tokenizer: Any,
    upstream: Sequence[UpstreamExample],
    settings: dict,
    scoring: Scoring,
    unfinished: Path | None = None,
    halvings: int = 0,
) -> rows.Row:
    """Losses of the untouched base model, as a row whose two losses are the same.

    What an interrupted run left in the folder `unfinished` is gone on from. `halvings` is how often
    batches are halved beforehand; every row of the model is then scored in the same ones.
    """
    began = time.perf_counter()
    measured = _Upstream.of(tokenizer, upstream, scoring)
    if scoring.tokens_per_batch == "auto":
        measured = measured.fitted(model)
    measured = measured.scored_by(measured.scoring.halved(halvings))
    ids = ids_of(upstream)
    shared = {**settings, "upstream": upstream_digest(upstream)}
    with Checkpoint(unfinished, fingerprint(shared)) as checkpoint:
        scores = measured.losses(model, "upstream, base", checkpoint)
        answers = None
        if measured.questions is not None:
            title = "upstream, base answers"
            save = partial(measured.save, checkpoint, scores)
            with models.computing(model, scoring.dtype):
                answers = measured.questions.base(model, tokenizer, title, checkpoint, save)
    about = measured.counts(scores) | {"versions": models.versions()}
    about |= {"seconds": time.perf_counter() - began, "tokens_per_batch": measured.scoring.budget}
    return rows.Row(ids, scores.losses, scores.losses, scores.tokens, shared, about, answers)


@dataclass(frozen=True)
class Job:
    """One fine-tune: a base model (`card`) with its losses, a task's examples, how to train.

    `base` is the row of the untouched model; losses before always come from it, never from the
    model in hand. `anchors` are the upstream examples that `recipe.ewc` needs, `group` is the
    task's, for `recipe.group_steps`. In the folder `unfinished` an interrupted run leaves what it
    has; `finish` removes it. `halvings` is how often batches and passes are halved beforehand,
    after tries that failed for want of memory, say: the same up to rounding.
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
    group: str = ""
    halvings: int = 0

    def run(
        self,
        upstream: Sequence[UpstreamExample],
        replayed: Sequence[UpstreamExample] = (),
        accounting: str = "add",
        title: str = "fine-tuning",
    ) -> tuple[Any, Any, rows.Row]:
        """Fine-tunes the base model and scores `upstream` again.

        `replayed` upstream examples are mixed in evenly (`lethe.engine.mixture`).

        Returns
        -------
        The fine-tuned model, its tokenizer, and the row of the examples in `upstream`.

        Raises
        ------
        RowError
            If the base losses are of another model, or were scored with other settings.
        """
        began = time.perf_counter()
        self._check_base()
        base = self.base.select(ids_of(upstream))
        model, tokenizer = models.load(self.card, self.scoring.weights, self.gpu)
        about = self._own_task(model, tokenizer, "before", title)
        tokens, cut = self._training_tokens(tokenizer, replayed, accounting)
        measured = _Upstream.of(tokenizer, upstream, self.found_scoring())
        made_from = self._made_from(upstream, replayed, accounting)
        with Checkpoint(self.unfinished, made_from) as checkpoint:
            model, trained = self._tuned(model, tokenizer, tokens, title, checkpoint)
            weights = partial(_save_weights, checkpoint, model, trained)
            after = measured.losses(model, f"{title}, upstream", checkpoint, weights)
            save = partial(measured.save, checkpoint, after, weights)
            answers = measured.answers(model, tokenizer, base, title, checkpoint, save)
            save = partial(save, answers)
            about |= self._own_task(model, tokenizer, "after", title, checkpoint, save)
        about |= measured.counts(after) | _training_facts(trained, cut)
        about |= {"versions": models.versions(), "data": self._data()}
        about |= {"base_versions": self.base.about.get("versions")}
        about["seconds"] = time.perf_counter() - began
        settings = {**self.base.settings, "recipe": self.recipe.model_dump()}
        losses = (base.loss_before, after.losses, after.tokens)
        return model, tokenizer, rows.Row(base.example_ids, *losses, settings, about, answers)

    def finish(self) -> None:
        """Removes what was kept for a run that is interrupted; call it when the row is on disk."""
        Checkpoint(self.unfinished).clear()

    def found_scoring(self) -> Scoring:
        """How losses are measured, in the batches that the base model was measured in."""
        found = self.base.about.get("tokens_per_batch", self.scoring.budget)
        scoring = self.scoring.model_copy(update={"tokens_per_batch": found})
        return scoring.halved(self.halvings)

    def _found_recipe(self) -> Recipe:
        """How the model is trained, in passes that memory is expected to hold."""
        if not self.halvings:
            return self.recipe
        size = self.recipe.micro_batch or -(-self.recipe.batch // distributed.size())
        return self.recipe.model_copy(update={"micro_batch": max(1, size >> self.halvings)})

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

    def _training_tokens(
        self, tokenizer: Any, replayed: Sequence[UpstreamExample], accounting: str
    ) -> tuple[list, Tokenised]:
        from lethe.engine.mixture import mix

        recipe = self.recipe
        longest = (recipe.max_tokens, recipe.truncation)
        cut = tokenise(tokenizer, self.train, *longest)
        usable = [example for example in cut.examples if example.scored]
        steps = planned_steps(recipe, len(self.train), self.group)
        new = stream(len(usable), steps * recipe.batch, recipe.seed)
        old = tokenise(tokenizer, [e.example for e in replayed], *longest).examples
        return mix([usable[i] for i in new], old, accounting), cut

    def _made_from(self, upstream: Sequence, replayed: Sequence, accounting: str) -> str:
        if self.unfinished is None:
            return ""
        settings = [self.card, self.recipe.model_dump(), self.scoring.model_dump(), accounting]
        settings.append(models.device(self.gpu).type)
        drawn = [example.example_id for example in replayed]
        return fingerprint(settings, self._data(), upstream_digest(upstream), drawn)

    def _tuned(
        self, model: Any, tokenizer: Any, tokens: Sequence, title: str, checkpoint: Checkpoint
    ) -> tuple[Any, Trained]:
        """The fine-tuned model: trained here, or by the run that was interrupted later on."""
        model = self._adapted(model)
        if (found := checkpoint.load("weights")) is not None:
            restore_weights(model, found[0])
            return model, Trained(**found[1])
        anchors = _upstream_tokens(tokenizer, self.anchors, self.scoring).examples
        recipe = self._found_recipe()
        tune = partial(fine_tune, unfinished=checkpoint, upstream=anchors)
        several = distributed.size() > 1
        exact_enough = self.recipe.lora is not None or self.scoring.weights == "float32"
        if exact_enough and not several:
            return model, tune(model, tokens, recipe, title)
        # Steps of 1e-6 are lost when they are added to bfloat16 weights, and shards of a model
        # score nothing: others are trained, while these make room.
        device = next(model.parameters()).device
        model.to("cpu")
        exact, _ = models.load(self.card, "float32", 0 if several else self.gpu)
        exact = self._adapted(exact)
        trained = tune(exact, tokens, recipe, title)
        model.to(device)
        for parameter, value in zip(model.parameters(), exact.parameters(), strict=True):
            if value.requires_grad:
                parameter.data.copy_(distributed.whole(value.detach()))
        return model, trained

    def _adapted(self, model: Any) -> Any:
        """The model with its adapters, if the recipe trains those instead of the weights."""
        if self.recipe.lora is None:
            return model
        return models.add_lora(model, self.recipe.lora, self.recipe.seed)

    def _own_task(
        self,
        model: Any,
        tokenizer: Any,
        when: str,
        title: str,
        checkpoint: Checkpoint | None = None,
        save: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """How well the model does what it is fine-tuned for, `before` and `after`.

        When it is time, `save` keeps what was measured before this.
        """
        checkpoint = checkpoint or Checkpoint(None)

        def after_batch(_so_far: Any) -> None:
            if checkpoint.due():
                save()
                checkpoint.leave_if_asked(f"{title}, all but the own task")

        recipe, scoring, said = self.recipe, self.found_scoring(), f"{title}, own task {when}"
        tokens = tokenise(
            tokenizer, self.evaluation, recipe.max_tokens, recipe.truncation, scoring.include_eos
        )
        with models.computing(model, scoring.dtype):
            losses = score(
                model, tokens.examples, scoring.budget, said, after_batch=after_batch
            ).losses
        found: dict[str, Any] = {f"eval_loss_{when}": _mean(losses)}
        if when == "after":
            found["eval_missing"] = int(np.isnan(losses).sum())
        if scoring.exact_match is not None:
            longest = scoring.model_copy(update={"max_tokens": recipe.max_tokens})
            questions = Questions.of(tokenizer, self.evaluation, longest)
            keeping = (f"{said}, answers", checkpoint, "own_answers", save)
            with models.computing(model, scoring.dtype):
                right = questions.right(questions.ask(model, tokenizer, None, *keeping))
            found[f"eval_exact_match_{when}"] = float(right.mean())
        return found


@dataclass(frozen=True)
class _Upstream:
    """Upstream examples as a model reads them; `questions` where exact match is measured."""

    tokens: Tokenised
    questions: Questions | None
    scoring: Scoring

    @classmethod
    def of(
        cls, tokenizer: Any, upstream: Sequence[UpstreamExample], scoring: Scoring
    ) -> "_Upstream":
        questions = None
        if scoring.exact_match is not None:
            examples = [example.example for example in upstream]
            questions = Questions.of(tokenizer, examples, scoring)
        return cls(_upstream_tokens(tokenizer, upstream, scoring), questions, scoring)

    def fitted(self, model: Any) -> "_Upstream":
        """The same in batches as large as the model's device has memory for."""
        with models.computing(model, self.scoring.dtype):
            found = fitting_budget(model, self.tokens.examples, self.scoring.budget)
        return self.scored_by(self.scoring.model_copy(update={"tokens_per_batch": found}))

    def scored_by(self, scoring: Scoring) -> "_Upstream":
        """The same in other batches."""
        questions = self.questions and replace(self.questions, scoring=scoring)
        return replace(self, scoring=scoring, questions=questions)

    def losses(
        self,
        model: Any,
        title: str,
        checkpoint: Checkpoint,
        save_weights: Callable[[], None] = lambda: None,
    ) -> Scores:
        """Losses of all, going on from what an interrupted run had scored."""
        found = checkpoint.load("scores")
        known = None if found is None else found[0]["losses"].numpy()

        def after_batch(losses: np.ndarray) -> None:
            if checkpoint.due():
                save_weights()
                checkpoint.save("scores", {"losses": torch.from_numpy(losses)}, {})
                scored = int(np.isfinite(losses).sum())
                checkpoint.leave_if_asked(f"{title}, {scored} of {len(losses)} examples")

        budget, examples = self.scoring.budget, self.tokens.examples
        with models.computing(model, self.scoring.dtype):
            return score(model, examples, budget, title, known=known, after_batch=after_batch)

    def answers(
        self,
        model: Any,
        tokenizer: Any,
        base: rows.Row,
        title: str,
        checkpoint: Checkpoint,
        save_weights: Callable[[], None] = lambda: None,
    ) -> rows.Answers | None:
        """The answers of a fine-tuned model to what the base model had right."""
        if self.questions is None or base.answers is None:
            return None
        asked, said = base.answers.exact_match_before == 1, f"{title}, answers"
        saving = (checkpoint, "answers", save_weights)
        with models.computing(model, self.scoring.dtype):
            given = self.questions.ask(model, tokenizer, asked, said, *saving)
        return self.questions.after(base.answers, given)

    def save(
        self,
        checkpoint: Checkpoint,
        scores: Scores,
        save_weights: Callable[[], None] = lambda: None,
        answers: rows.Answers | None = None,
    ) -> None:
        """Saves what is measured in whole, before more of the job is saved."""
        save_weights()
        checkpoint.save("scores", {"losses": torch.from_numpy(scores.losses)}, {})
        if answers is not None:
            keep(checkpoint, "answers", [text for text in answers.text if text is not None])

    def counts(self, scores: Scores) -> dict[str, Any]:
        """What was cut, empty or not measured, and how fast the rest was."""
        return {
            "truncated": self.tokens.truncated,
            "empty": self.tokens.empty,
            "missing": int(np.isnan(scores.losses).sum()),
            "scoring_seconds": scores.seconds,
            "scoring_tokens_per_second": scores.tokens_per_second,
            "peak_memory_mb": models.peak_memory_mb(),
        }


def measure_again(
    model: Any,
    tokenizer: Any,
    upstream: Sequence[UpstreamExample],
    row: rows.Row,
    scoring: Scoring,
    title: str,
) -> rows.Row:
    """The row with the same fine-tuned model measured once more, in the batches of `scoring`."""
    began = time.perf_counter()
    measured, nothing = _Upstream.of(tokenizer, upstream, scoring), Checkpoint(None)
    losses = measured.losses(model, title, nothing).losses
    answers = measured.answers(model, tokenizer, row, title, nothing)
    about = row.about | {"seconds": time.perf_counter() - began}
    return replace(row, loss_after=losses, answers=answers, about=about)


def _save_weights(checkpoint: Checkpoint, model: Any, trained: Trained) -> None:
    """Once: scoring changes no weight."""
    if not checkpoint.holds("weights"):
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


def _upstream_tokens(
    tokenizer: Any, upstream: Sequence[UpstreamExample], scoring: Scoring
) -> Tokenised:
    examples = (example.example for example in upstream)
    how = (scoring.max_tokens, "right", scoring.include_eos)
    return tokenise(tokenizer, examples, *how, into=TokenFile())


def _mean(losses: np.ndarray) -> float:
    return float(np.nanmean(losses)) if np.isfinite(losses).any() else float("nan")
