"""One measurement: fine-tune a base model on a stream of examples and score its losses again."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from lethe.config.model_settings import Recipe, Scoring
from lethe.data.examples import Example, UpstreamExample, ids_of, upstream_digest
from lethe.data.tokens import Tokenised, Tokens, tokenise
from lethe.engine import distributed, models
from lethe.engine.checkpoints import (
    Checkpoint,
    fingerprint,
    read_weights,
    restore_weights,
    weight_tensors,
)
from lethe.engine.interpolation import base_weights, interpolate
from lethe.engine.loading_report import check_finite, check_length
from lethe.engine.objectives import ReplayTerm
from lethe.engine.reader import Reader
from lethe.engine.teacher import LiveTeacher, has_sliceable_head, mean_divergences
from lethe.engine.training import Trained, fine_tune, planned_steps, stream
from lethe.errors import LetheError, RowError
from lethe.files import cached_sha256
from lethe.matrix import rows
from lethe.matrix.model_cards import same_model
from lethe.measure.own_task import score_own_task
from lethe.measure.routing import Routes
from lethe.measure.upstream_set import UpstreamSet, upstream_tokens


def base_losses(
    reader: Reader,
    upstream: Sequence[UpstreamExample],
    settings: dict[str, Any],
    unfinished: Path | None = None,
    halvings: int = 0,
    by_token: dict[int, np.ndarray] | None = None,
) -> rows.Row:
    """Losses of the untouched base model, as a row whose losses before and after are the same.

    Parameters
    ----------
    settings
        Settings that rows of this model must share.
    unfinished
        Folder of an interrupted run's checkpoint, from which this run resumes.
    halvings
        How often batches are halved beforehand. Every row of the model is then scored in the same
        batches.
    by_token
        Receives the losses of the examples' single tokens, by the example's number.

    Raises
    ------
    LetheError
        If the model has weights that are NaN or infinite, or if all losses are NaN.
    """
    began = time.perf_counter()
    name = getattr(reader.model, "name_or_path", "")
    check_finite(reader.model, name)
    upstream_set = UpstreamSet.of(reader, upstream)
    if reader.scoring.tokens_per_batch == "auto":
        reader = reader.with_fitting_batches(upstream_set.tokens.examples)
    reader = reader.with_scoring(reader.scoring.halved(halvings))
    settings = {**settings, "upstream": upstream_digest(upstream)}
    # Losses of another device, or of batches of another size, differ in their last digits.
    device = next(reader.model.parameters()).device.type
    with Checkpoint(unfinished, fingerprint(settings, device, halvings)) as checkpoint:
        scores = upstream_set.losses(reader, "upstream, base", checkpoint, by_token)
        if scores.all_nan:
            raise LetheError(
                f"model {name}: all losses of the base model are NaN, though its weights are "
                "finite; use scoring.dtype float32 or autocast, or another checkpoint of the model"
            )
        answers = upstream_set.base_answers(reader, "upstream, base answers", checkpoint)
    about = upstream_set.counts(scores)
    about["versions"] = models.versions()
    about["tokens_per_batch"] = reader.scoring.budget
    about["seconds"] = time.perf_counter() - began
    return rows.Row(
        example_ids=ids_of(upstream),
        loss_before=scores.losses,
        loss_after=scores.losses,
        n_tokens=scores.tokens,
        settings=settings,
        about=about,
        answers=answers,
    )


@dataclass(frozen=True)
class Job:
    """One fine-tune and its measurement.

    Attributes
    ----------
    card
        Description of the base model.
    base
        Row of the untouched model. Losses before the fine-tune always come from it; they are never
        measured again.
    train, evaluation
        The task's examples.
    anchors
        Upstream examples that `recipe.ewc` needs.
    replayable
        Upstream examples that a memory or router needs (`recipe.routing`); none is held out.
    unfinished
        Folder of the checkpoint; `finish` removes it.
    group
        The task's group, for `recipe.group_steps`.
    halvings
        How often batches and passes are halved beforehand, after tries that failed for lack of
        memory, for example. The result is the same up to rounding.
    share_of_change
        Share of the fine-tune's change of the weights that is measured, from 0 (the base model) to
        1; None: all of it (`lethe.engine.interpolation`).
    start
        File of the weights that the fine-tune starts from, such as those of the step before in a
        sequence (`lethe.engine.checkpoints.write_weights`); None: the base model's. Forgetting is
        measured against the base model in both cases, and its distributions are those that a KL
        objective keeps. Penalties on the change of the weights count from the start.
    """

    card: dict[str, Any]
    base: rows.Row
    train: Sequence[Example]
    evaluation: Sequence[Example]
    recipe: Recipe
    scoring: Scoring
    gpus: int = 0
    anchors: Sequence[UpstreamExample] = ()
    unfinished: Path | None = None
    group: str = ""
    halvings: int = 0
    share_of_change: float | None = None
    replayable: Sequence[UpstreamExample] = ()
    start: Path | None = None

    def run(
        self,
        upstream: Sequence[UpstreamExample],
        replay: ReplayTerm | None = None,
        title: str = "fine-tuning",
    ) -> tuple[Any, Any, rows.Row]:
        """Fine-tunes the base model, or that of `start`, and scores `upstream` again.

        Parameters
        ----------
        replay
            Upstream examples that are replayed during the training, and how they enter its loss.

        Returns
        -------
        The fine-tuned model, its tokenizer, and the row of the examples in `upstream`.

        Raises
        ------
        RowError
            If the base losses are of another model, or were scored with other settings.
        LetheError
            If the training diverges, or all upstream losses are NaN after it; if a router comes
            with a replay term that is chosen during the training.
        """
        began = time.perf_counter()
        self._check_base()
        made_from = self.made_from(upstream, replay)
        base = self.base.select(ids_of(upstream))
        reader = Reader.load(self.card, self.scoring, self.gpus)
        reader = reader.with_scoring(self.scoring_of_base())
        self._read_start(reader.model)
        before = score_own_task(reader, self.evaluation, self.recipe, when="before", title=title)
        train = tokenise(
            reader.tokenizer, self.train, self.recipe.max_tokens, self.recipe.truncation
        )
        training_stream = self._training_stream(train, title)
        pool = replay.examples if replay else []
        replay = self._tokenised(replay, reader.tokenizer)
        self._check_training(reader.model, train, replay, title)
        upstream_set = UpstreamSet.of(reader, upstream)
        routes = self._routes(reader, train.examples, upstream)
        with Checkpoint(self.unfinished, made_from) as checkpoint:
            reader, trained = self._fine_tuned(
                reader,
                training_stream,
                replay,
                pool=pool,
                title=title,
                checkpoint=checkpoint,
                routes=routes,
            )
            scores = upstream_set.losses(reader, f"{title}, upstream", checkpoint)
            if scores.all_nan:
                raise LetheError(
                    f"{title}: after fine-tuning the model {self.card['path']}, all upstream "
                    f"losses are NaN (the last training loss was {trained.last_loss:.4g}): the "
                    "last steps ruined the weights; lower recipe.lr"
                )
            answers = upstream_set.answers(
                reader, base.answers, f"{title}, upstream, answers", checkpoint
            )
            after = score_own_task(
                reader,
                self.evaluation,
                self.recipe,
                when="after",
                title=title,
                checkpoint=checkpoint,
            )
        if routes is not None:
            # A memory leaves these examples as they are to the bit, but only in the same batches.
            scores = routes.losses(scores, base)
            answers = routes.answers(answers, base.answers)
            after = after.only_where(routes.evaluation, before)
        about = {
            **before.facts("before"),
            **after.facts("after"),
            **upstream_set.counts(scores),
            **_training_facts(trained, train, replay),
            **_routing_facts(reader.model, self.recipe, routes, upstream),
            "versions": models.versions(),
            "data": self._data(),
            "base_versions": self.base.about.get("versions"),
            "seconds": time.perf_counter() - began,
            "date": datetime.now(UTC).date().isoformat(),
        }
        row = rows.Row(
            example_ids=base.example_ids,
            loss_before=base.loss_before,
            loss_after=scores.losses,
            n_tokens=scores.tokens,
            settings={**self.base.settings, "recipe": self.recipe.of_result()},
            about=about,
            answers=answers,
        )
        return reader.model, reader.tokenizer, row

    def divergences(
        self, model: Any, tokenizer: Any, upstream: Sequence[UpstreamExample], title: str
    ) -> np.ndarray:
        """Mean KL(base || model) of each upstream example over its scored tokens, in nats.

        It answers whether the model is still the same on these texts, which a loss that stays does
        not show. It costs a forward pass of each of the two models. A full fine-tune also needs
        memory for the base model.

        Parameters
        ----------
        model, tokenizer
            The fine-tuned model that `run` returned, and its tokenizer.

        Returns
        -------
        Array (N,) in float32, NaN for an example without a scored token.
        """
        reader = Reader(model, tokenizer, self.scoring_of_base())
        examples = upstream_tokens(reader, upstream).examples
        teacher = self.base_teacher(model, examples)
        if teacher is None:
            return np.full(len(upstream), np.nan, dtype=np.float32)
        with models.autocast_for(model, self.scoring.dtype):
            values = mean_divergences(model, teacher, examples, reader.scoring.budget, title)
        if self.recipe.router is None:
            return values
        train = tokenise(tokenizer, self.train, self.recipe.max_tokens, self.recipe.truncation)
        routes = self._routes(replace(reader, model=teacher.model), train.examples, upstream)
        return np.where(routes.upstream | np.isnan(values), values, np.float32(0))

    def heldout_divergence(
        self, model: Any, tokenizer: Any, upstream: Sequence[UpstreamExample], title: str
    ) -> float:
        """Mean of `divergences` over the held-out examples that have one; NaN if none has."""
        heldout = [example for example in upstream if example.split == "heldout"]
        values = self.divergences(model, tokenizer, heldout, f"{title}, divergence")
        measured = values[np.isfinite(values)]
        return float(measured.mean()) if len(measured) else float("nan")

    def base_teacher(self, model: Any, examples: Sequence[Tokens]) -> LiveTeacher | None:
        """The base model beside a fine-tuned one; None if no example has a scored token.

        It is loaded once more, or is the fine-tuned model without its adapters.
        """
        usable = next((example for example in examples if example.scored), None)
        if usable is None:
            return None
        base = model
        # A router reads the layers of a model without adapters, and without its adapters a model
        # with a start is the start.
        is_other = self.recipe.router is not None or self.start is not None
        if self.recipe.method == "full" or is_other:
            base, _ = models.load(self.card, self.scoring.weights, self.gpus)
        return LiveTeacher(base, has_sliceable_head(model, usable))

    def finish(self) -> None:
        """Removes the checkpoint; call it when the row is on disk."""
        Checkpoint(self.unfinished).clear()

    def scoring_of_base(self) -> Scoring:
        """The scoring settings, with the batches in which the base model was measured."""
        budget = self.base.about.get("tokens_per_batch", self.scoring.budget)
        scoring = self.scoring.model_copy(update={"tokens_per_batch": budget})
        return scoring.halved(self.halvings)

    def _recipe_in_passes(self) -> Recipe:
        """The recipe, with passes that memory is expected to hold."""
        if not self.halvings:
            return self.recipe
        size = self.recipe.micro_batch or -(-self.recipe.batch // distributed.size())
        return self.recipe.model_copy(update={"micro_batch": max(1, size >> self.halvings)})

    def _check_base(self) -> None:
        current = {"model": self.card, "scoring": self.scoring.model_dump(mode="json")}
        measured = self.base.settings
        different = [key for key in current if measured.get(key, current[key]) != current[key]]
        if "model" in different and same_model(self.card, measured["model"]):
            different.remove("model")
        if different:
            raise RowError(
                "the base losses were measured with other settings than this job's "
                f"({ {key: measured[key] for key in different} }, now "
                f"{ {key: current[key] for key in different} }); move base.parquet away and run "
                "again"
            )

    def _check_training(
        self, model: Any, train: Tokenised, replay: ReplayTerm | None, title: str
    ) -> None:
        """Refuses examples that the model cannot read, and a replay term that a router excludes."""
        for examples in (train.examples, replay.examples if replay else []):
            longest = max((len(example.ids) for example in examples), default=0)
            check_length(model, longest, setting="recipe.max_tokens")
        if self.recipe.router is not None and replay is not None and replay.chooser is not None:
            raise LetheError(
                f"{title}: recipe.router does not go with replay strategies that probe the model "
                "during the training (online, closed_loop); use another strategy"
            )

    def _data(self) -> dict[str, str]:
        """SHA-256 of the task's examples."""
        return {"train": _digest(self.train), "evaluation": _digest(self.evaluation)}

    def _training_stream(self, train: Tokenised, title: str) -> list[Tokens]:
        """The task's examples in the order in which they are trained on."""
        usable = [example for example in train.examples if example.scored]
        steps = planned_steps(self.recipe, len(self.train), self.group)
        order = stream(len(usable), steps * self.recipe.batch, self.recipe.seed, title)
        return [usable[i] for i in order]

    def _tokenised(self, replay: ReplayTerm | None, tokenizer: Any) -> ReplayTerm | None:
        """The replay term with the tokens of its examples."""
        if replay is None:
            return None
        tokens = tokenise(
            tokenizer,
            [example.example for example in replay.examples],
            self.recipe.max_tokens,
            self.recipe.truncation,
        )
        if replay.weights is None:
            return replace(replay, examples=tokens.examples)
        weighted = []
        for example, weight in zip(tokens.examples, replay.weights, strict=True):
            weighted.append(replace(example, weight=weight))
        return replace(replay, examples=weighted)

    def made_from(
        self, upstream: Sequence[UpstreamExample], replay: ReplayTerm | None = None
    ) -> str:
        """Fingerprint of everything that the job's result depends on; empty without checkpoint."""
        if self.unfinished is None:
            return ""
        replay = replay or ReplayTerm()
        settings = [self.card, self.recipe.model_dump(), self.scoring.model_dump()]
        settings += [replay.settings(), models.device_for(self.gpus).type]
        if self.recipe.group_steps:
            # The number of steps depends on the task's group.
            settings.append({"steps": planned_steps(self.recipe, len(self.train), self.group)})
        if self.share_of_change is not None:
            settings.append(self.share_of_change)
        if self.start is not None:
            settings.append({"start": cached_sha256(self.start)})
        if self.replayable:
            settings.append(upstream_digest(self.replayable))
        return fingerprint(
            settings,
            self._data(),
            upstream_digest(upstream),
            upstream_digest(replay.examples),
            upstream_digest(self.anchors),
        )

    def _fine_tuned(
        self,
        reader: Reader,
        training_stream: Sequence[Tokens],
        replay: ReplayTerm | None,
        *,
        pool: Sequence[UpstreamExample],
        title: str,
        checkpoint: Checkpoint,
        routes: Routes | None,
    ) -> tuple[Reader, Trained]:
        """The fine-tuned model: trained here, or restored from an interrupted run.

        `pool` holds the examples of the replay term before they were tokenised.
        """
        model = self._with_adapters(reader.model, routes)
        if (saved := checkpoint.load("weights")) is not None:
            tensors, facts = saved
            restore_weights(model, tensors)
            return replace(reader, model=model), Trained(**facts)
        anchors = upstream_tokens(reader, self.anchors).examples
        device = next(model.parameters()).device
        if self._trains_a_copy():
            # The copy that is scored makes room on the device for the one that is trained.
            model.to("cpu")
            trainable = self._trainable_copy()
        else:
            trainable = model
        before = None if self.share_of_change is None else base_weights(model)

        def measure(numbers: Sequence[int]) -> np.ndarray:
            if trainable is not model:
                model.to(device)
                _copy_trained_weights(trainable, model)
            values = self._forgetting_now(
                replace(reader, model=model),
                [pool[number] for number in numbers],
                title=f"{title}, probes",
            )
            if trainable is not model:
                model.to("cpu")
            return values

        trained = fine_tune(
            trainable,
            training_stream,
            self._recipe_in_passes(),
            title,
            checkpoint=checkpoint,
            upstream=anchors,
            replay=replay,
            measure=measure,
            base=self._teacher_model(replay),
        )
        if trainable is not model:
            model.to(device)
            _copy_trained_weights(trainable, model)
        if before is not None:
            interpolate(model, before, self.share_of_change)
        checkpoint.remember("weights", weight_tensors(model), asdict(trained))
        return replace(reader, model=model), trained

    def _forgetting_now(
        self, reader: Reader, upstream: Sequence[UpstreamExample], title: str
    ) -> np.ndarray:
        """Forgetting (k,) of examples by a model in the middle of its training, in nats.

        The examples are measured as they are after the training: by the model that is scored, in
        its type and batches. All processes get the values of the first.
        """
        base = self.base.select(ids_of(upstream))
        upstream_set = UpstreamSet.of(reader, upstream)
        scores = upstream_set.losses(reader, title, Checkpoint())
        answers = upstream_set.answers(reader, base.answers, f"{title}, answers", Checkpoint())
        measured = replace(base, loss_after=scores.losses, answers=answers)
        return distributed.all_gather(measured.forgetting)[0]

    def _trains_a_copy(self) -> bool:
        """True if the model that is scored cannot be trained itself.

        Steps of 1e-6 are lost when they are added to bfloat16 weights, so float32 weights are
        trained. Sharded models cannot score, so another copy is sharded.
        """
        exact = self.recipe.method != "full" or self.scoring.weights == "float32"
        return not exact or distributed.size() > 1

    def _trainable_copy(self) -> Any:
        """A second copy of the starting weights in float32; its shards go to the GPUs later."""
        gpus = 0 if distributed.size() > 1 else self.gpus
        model, _ = models.load(self.card, "float32", gpus)
        self._read_start(model)
        return self._with_adapters(model, None)

    def _read_start(self, model: Any) -> None:
        """Puts the weights that the fine-tune starts from into a base model."""
        if self.start is not None:
            read_weights(self.start, model)

    def _teacher_model(self, replay: ReplayTerm | None) -> Any:
        """The base model for KL objectives, where the fine-tune starts from other weights."""
        has_kl = bool(self.recipe.prompt_kl) or (replay is not None and replay.needs_teacher)
        if self.start is None or not has_kl:
            return None
        gpus = 0 if distributed.size() > 1 else self.gpus
        return models.load(self.card, "float32", gpus)[0]

    def _with_adapters(self, model: Any, routes: Routes | None) -> Any:
        """The model with its adapters or memory, if the recipe trains those instead of weights."""
        if self.recipe.method == "memory":
            router = None if routes is None else routes.router
            return models.add_memory(model, self.recipe.memory, router)
        if self.recipe.method == "lora":
            return models.add_lora(model, self.recipe.lora, self.recipe.seed)
        return model

    def _routes(
        self, reader: Reader, training: Sequence[Tokens], upstream: Sequence[UpstreamExample]
    ) -> Routes | None:
        """The router of the recipe and its decisions; None if it has none."""
        if self.start is not None and (self.recipe.routing or self.recipe.memory):
            raise LetheError(
                "recipe.memory and recipe.router start from the base model, not from "
                f"{self.start}; remove them to fine-tune these weights"
            )
        if distributed.size() > 1 and (self.recipe.routing or self.recipe.memory):
            raise LetheError(
                "recipe.memory and recipe.router run in one process only; remove them, or give "
                "the model strategy: single"
            )
        return Routes.of(
            reader,
            self.recipe,
            training=training,
            replayable=self.replayable,
            upstream=upstream,
            evaluation=self.evaluation,
        )


def measure_again(
    reader: Reader, upstream: Sequence[UpstreamExample], row: rows.Row, title: str
) -> rows.Row:
    """The row with the same fine-tuned model measured once more, in the batches of the reader."""
    began = time.perf_counter()
    upstream_set = UpstreamSet.of(reader, upstream)
    losses = upstream_set.losses(reader, title, Checkpoint()).losses
    answers = upstream_set.answers(reader, row.answers, f"{title}, answers", Checkpoint())
    about = row.about | {"seconds": time.perf_counter() - began}
    return replace(row, loss_after=losses, answers=answers, about=about)


def _digest(examples: Sequence[Example]) -> str:
    """SHA-256 of examples in their order."""
    return fingerprint([example.digest() for example in examples])


def _copy_trained_weights(source: Any, target: Any) -> None:
    """Copies the trained weights of one model into another with the same parameters."""
    for parameter, value in zip(target.parameters(), source.parameters(), strict=True):
        if value.requires_grad:
            parameter.data.copy_(distributed.full_tensor(value.detach()))


def _routing_facts(
    model: Any, recipe: Recipe, routes: Routes | None, upstream: Sequence[UpstreamExample]
) -> dict[str, Any]:
    """The shares of routed examples, and the bytes kept beside the base model; or nothing."""
    if routes is None and recipe.memory is None:
        return {}
    if recipe.memory is not None:
        stored = model.stored_bytes
    else:
        stored = routes.router.stored_bytes
        for parameter in model.parameters():
            if parameter.requires_grad:
                stored += parameter.numel() * parameter.element_size()
    everything = {"heldout_routed": 1.0, "eval_routed": 1.0}
    facts = everything if routes is None else routes.facts(upstream)
    return facts | {"memory_bytes": stored}


def _training_facts(
    trained: Trained, train: Tokenised, replay: ReplayTerm | None
) -> dict[str, Any]:
    facts = {
        "steps": trained.steps,
        "training_loss_first": trained.first_loss,
        "training_loss_last": trained.last_loss,
        "training_truncated": train.truncated,
        "training_empty": train.empty,
        "training_tokens_per_second": trained.tokens / max(trained.seconds, 1e-9),
        "training_seconds": trained.seconds,
        "optimizer": trained.optimizer,
    }
    if replay is not None and replay.examples:
        facts["replayed_token_share"] = trained.replayed_share
    if trained.phases:
        facts["replay_phases"] = trained.phases
    return facts
