"""Predicts what a model is forgetting while a Trainer fine-tunes it."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import TrainerCallback

from lethe.completion.predictor import SAME_WEIGHTS, Prediction, Predictor
from lethe.data.examples import (
    UpstreamExample,
    read_upstream,
    without_copies_of_heldout,
    write_upstream,
)
from lethe.data.tokens import Tokens, tokenise
from lethe.data.training_rows import read_new_data
from lethe.engine.scoring import score
from lethe.errors import LetheError
from lethe.replay.draws import draw_softmax
from lethe.replay.mixture_files import make_mixture, write_mixture

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BelowLimit:
    """The trained weights at a measurement, in the memory of the CPU, and its prediction."""

    step: int
    weights: dict[str, torch.Tensor]
    prediction: Prediction

    @classmethod
    def of(cls, model: Any, step: int, prediction: Prediction) -> Self:
        """A copy of the weights that are trained."""
        weights = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                weights[name] = parameter.detach().to("cpu", copy=True)
        return cls(step=step, weights=weights, prediction=prediction)

    @torch.no_grad()
    def restore(self, model: Any) -> None:
        """Puts the weights back into the model."""
        for name, parameter in model.named_parameters():
            if name in self.weights:
                parameter.copy_(self.weights[name])


class ForgettingProbe(TrainerCallback):
    """A callback for transformers' Trainer and trainers built on it, such as trl's SFTTrainer.

    Before the first step it scores the predictor's probes on the base model. Then, at every
    evaluation or every `every` steps, and on the model that comes out at the end, it scores them
    again, predicts the forgetting of all upstream examples and logs it in nats: the mean,
    `forgetting/mean`, with its interval `forgetting/mean_low` to `forgetting/mean_high`; that of
    every domain, `forgetting/<domain>`, with `/low` and `/high`; and `forgetting/low` and
    `forgetting/high`, the mean ends of the intervals of single examples. `probes/mean_rise` is
    the mean rise in loss of the probes themselves; it is no estimate of forgetting, because probes
    are chosen to tell tasks apart. The training is not changed: the probe draws no random number
    and restores modes and gradients.

        probe = ForgettingProbe.attach(trainer, "predictor.npz", limit=0.1)

    Parameters
    ----------
    predictor
        A `lethe.completion.predictor.Predictor`, or its file.
    every
        Number of steps between two measurements. By default, the probe measures at every
        evaluation and at the end.
    limit
        Training stops when the mean predicted forgetting is above this number of nats.
    keep_below_limit
        If the training ends above the limit, the model gets the weights of the last measurement
        at or below it back. A copy of the trained weights is held in the memory of the CPU.
    risk
        `at_risk` lists the domains that are predicted to lose more than this number of nats.
    tokenizer
        Tokenizer of the model. By default, the processing class of the trainer.
    base_losses
        Losses (k,) of the probes under the base model, such as `probe.base_losses` of the first
        start. When you resume from a checkpoint, the base model is no longer in memory, so they
        are needed unless the predictor has them.
    tokens_per_batch
        Tokens per batch when the probes are scored, padding included.
    other
        Row (N,) in nats of the same fine-tune on the other model whose rows the predictor holds
        (`Predictor.predict`), such as that of a sibling which was fine-tuned before.

    Attributes
    ----------
    history
        One record per measurement: `step`, and what was logged.
    prediction
        The last prediction; None before the first.

    Raises
    ------
    LetheError
        If `every` is no whole number above 0, `limit` or `risk` is NaN, `keep_below_limit` comes
        without a limit, `base_losses` has another length than the probes, or `other` has another
        length than the examples or the predictor holds no rows of another model. During training:
        if the model is not the experiment's base model, its tokenizer reads the probes
        differently, or a loss is not finite.
    """

    def __init__(
        self,
        predictor: Predictor | Path | str,
        *,
        every: int | None = None,
        limit: float | None = None,
        keep_below_limit: bool = False,
        risk: float = 0.1,
        tokenizer: Any = None,
        base_losses: np.ndarray | None = None,
        tokens_per_batch: int = 2048,
        other: np.ndarray | None = None,
    ):
        if every is not None and (every < 1 or every != int(every)):
            raise LetheError(
                f"ForgettingProbe: every must be 1 or more (value seen: {every}), and whole; leave "
                "it out to measure at every evaluation and at the end"
            )
        for name, value in (("limit", limit), ("risk", risk)):
            if value is not None and np.isnan(value):
                raise LetheError(
                    f"ForgettingProbe: {name} is NaN, and nothing is above NaN; give a number of "
                    "nats"
                )
        if keep_below_limit and limit is None:
            raise LetheError(
                "ForgettingProbe: keep_below_limit needs a limit; give limit=... in nats"
            )
        if not isinstance(predictor, Predictor):
            predictor = Predictor.load(predictor)
        if base_losses is not None and np.shape(base_losses) != (len(predictor.probes),):
            raise LetheError(
                f"ForgettingProbe: base_losses has shape {np.shape(base_losses)}, but the "
                f"predictor has {len(predictor.probes)} probes; give one loss per probe"
            )
        if other is not None:
            _check_other(predictor, other)
        self.predictor = predictor
        self.other = other
        self.every = every
        self.limit = limit
        self.keep_below_limit = keep_below_limit
        self.risk = risk
        self.base_losses = base_losses
        self.tokens_per_batch = tokens_per_batch
        self.history: list[dict[str, float]] = []
        self.prediction: Prediction | None = None
        self._tokenizer = tokenizer
        self._trainer: Any = None
        self._tokens: Sequence[Tokens] | None = None
        # Step and losses of the last measurement of this training.
        self._last: tuple[int, np.ndarray] | None = None
        self._below_limit: BelowLimit | None = None
        if base_losses is not None:
            self._check_finite(np.asarray(base_losses), "in base_losses")
            # They may have been measured in another precision than the experiment's.
            self.predictor.check_base(
                np.asarray(base_losses), "ForgettingProbe", single_precision=False
            )

    @classmethod
    def attach(cls, trainer: Any, predictor: Predictor | Path | str, **options: Any) -> Self:
        """Makes a probe, adds it to a trainer, and logs to the trainer's own loggers."""
        probe = cls(predictor, **options)
        probe._trainer = trainer
        trainer.add_callback(probe)
        return probe

    @property
    def at_risk(self) -> list[str]:
        """Domains that are predicted to lose more than `risk` nats, largest loss first."""
        if self.prediction is None:
            return []
        means = self.prediction.domains
        return [domain for domain, mean in means.items() if mean.value > self.risk]

    def summary(self) -> str:
        """The last prediction in words: mean forgetting, that of every domain, with intervals.

        At the end stands how much of the most forgotten tenth the predicted tenth should hold
        (`Predictor.top_tenth`).

        Raises
        ------
        LetheError
            If nothing was measured yet.
        """
        return self._predicted().summary(self.predictor.top_tenth)

    def predictions(self) -> list[dict[str, Any]]:
        """The last prediction, one record per upstream example, the largest forgetting first.

        Returns
        -------
        Records with `example_id`, `domain`, `forgetting`, `low` and `high` in nats, and `probe`:
        whether the example is a probe, so that its forgetting was measured.

        Raises
        ------
        LetheError
            If nothing was measured yet.
        """
        prediction = self._predicted()
        probes = set(self.predictor.index.tolist())
        records = []
        for i in np.argsort(-prediction.forgetting, kind="stable"):
            records.append(
                {
                    "example_id": self.predictor.example_ids[i],
                    "domain": str(self.predictor.domains[i]),
                    "forgetting": float(prediction.forgetting[i]),
                    "low": float(prediction.low[i]),
                    "high": float(prediction.high[i]),
                    "probe": int(i) in probes,
                }
            )
        return records

    def _predicted(self) -> Prediction:
        """The last prediction.

        Raises
        ------
        LetheError
            If nothing was measured yet.
        """
        if self.prediction is None:
            raise LetheError(
                "ForgettingProbe: nothing was predicted yet; train first, or set every to fewer "
                "steps"
            )
        return self.prediction

    def draw_replay(
        self,
        pool: Path | str,
        output: Path | str,
        *,
        examples: int,
        temperature: float = 0.1,
        seed: int = 0,
    ) -> Path:
        """Draws the examples to replay by the last prediction, and writes them as a table.

        `Rehearsal.attach(trainer, output)` replays them.

        Parameters
        ----------
        pool
            The upstream examples of the predictor's experiment (upstream.parquet or pool.parquet).
            Held-out examples are never drawn.
        output
            Parquet file to write. A file that is there already must hold the same examples.
        examples
            Number of examples to draw, without repetition.
        temperature
            Examples are drawn in proportion to exp(prediction / temperature), in nats; above 0.

        Raises
        ------
        LetheError
            If the output is the pool or another file that exists, the temperature is not above 0,
            nothing was predicted yet, the pool is not that of the predictor, or it has fewer
            replayable examples.
        """
        if Path(output).resolve() == Path(pool).resolve():
            raise LetheError(
                f"ForgettingProbe: {output}: is the pool itself, which the drawn examples would "
                "replace; give another output"
            )
        # NaN is refused, too.
        if not temperature > 0:
            raise LetheError(
                f"ForgettingProbe: temperature is {temperature}, but must be above 0; give a small "
                "one, such as 0.001, to draw the examples with the highest predictions"
            )
        upstream, predicted = self._predicted_pool(pool)
        usable = without_copies_of_heldout(upstream)
        replayable = [example for example in usable if example.split == "replayable"]
        candidates = [example for example in replayable if example.example_id in predicted]
        if not 1 <= examples <= len(candidates):
            raise LetheError(
                f"ForgettingProbe: {pool}: {examples} examples are to be drawn, but it has "
                f"{len(candidates)} replayable ones with a prediction; give the pool of the "
                f"predictor's experiment, and a number from 1 to {len(candidates)}"
            )
        scores = np.array([predicted[example.example_id] for example in candidates])
        numbers = draw_softmax(scores / temperature, examples, seed)
        drawn = [candidates[number] for number in numbers]
        if Path(output).exists():
            _check_same_examples(Path(output), drawn)
        else:
            write_upstream(Path(output), drawn)
        return Path(output)

    def mix(
        self,
        chats: Path | str,
        pool: Path | str,
        output: Path | str,
        *,
        ratio: float = 0.1,
        seed: int = 0,
    ) -> dict[str, int]:
        """Mixes new data with examples drawn by the last prediction, as `lethe mix` does.

        Warnings of the logger say what was read and what was left out, as `lethe mix` prints it.

        Parameters
        ----------
        chats
            New data, in a form that `lethe mix` reads.
        pool
            As in `draw_replay`.
        output
            Folder of the rows (`lethe.replay.mixture_files.write_mixture`).
        ratio
            Replayed examples per new example; above 0 and at most 100.

        Returns
        -------
        Rows by the name of the file.

        Raises
        ------
        LetheError
            If nothing was predicted yet, the pool is not that of the predictor, the folder is not
            empty, the ratio is impossible, or nothing can be replayed.
        """
        upstream, predicted = self._predicted_pool(pool)
        folder = Path(output)
        if folder.exists() and any(folder.iterdir()):
            raise LetheError(
                f"ForgettingProbe: {folder}: is not empty, and nothing in it is overwritten; give "
                "another folder"
            )
        values = {example.example_id: float("nan") for example in upstream}
        data = read_new_data(Path(chats))
        mixture = make_mixture(
            data,
            upstream,
            ratio=ratio,
            seed=seed,
            forgetting=values | predicted,
            measure="predicted_forgetting",
        )
        # Not at the level of information, which most loggers drop.
        for remark in [f"{chats}: {data.summary}", *mixture.remarks(chats, pool)]:
            logger.warning("ForgettingProbe: %s", remark)
        return write_mixture(folder, mixture)

    def _predicted_pool(self, pool: Path | str) -> tuple[list[UpstreamExample], dict[str, float]]:
        """The examples of a pool, and the predictions by id; one of the probes must be there.

        Raises
        ------
        LetheError
            If nothing was predicted yet, the pool has none of the probes, or a probe has another
            text in it.
        """
        predicted = {record["example_id"]: record["forgetting"] for record in self.predictions()}
        upstream = list(read_upstream(pool))
        texts = {example.example_id: example.example for example in upstream}
        probes_in_pool = 0
        for number, probe in zip(self.predictor.index, self.predictor.probes, strict=True):
            name = self.predictor.example_ids[int(number)]
            if name not in texts:
                continue
            probes_in_pool += 1
            if texts[name] != probe:
                raise LetheError(
                    f"ForgettingProbe: {pool}: example {name!r} has another text than in the "
                    "predictor; give the pool of the predictor's experiment"
                )
        if not probes_in_pool:
            # The predictor holds no other texts, so nothing shows that the ids mean the same.
            raise LetheError(
                f"ForgettingProbe: {pool}: holds none of the predictor's "
                f"{len(self.predictor.probes)} probes, so it is another pool or a small part of "
                "it; give the pool of the predictor's experiment"
            )
        return upstream, predicted

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **_kwargs):
        """Scores the probes on the base model, unless their base losses are known.

        Raises
        ------
        LetheError
            If the training resumes from a checkpoint and there are no base losses, or the model
            is not the base model of the predictor.
        """
        self._last = None
        self._below_limit = None
        self._prepare(state, model, processing_class)

    def on_step_end(self, args, state, control, model=None, **_kwargs):
        """Measures every `every` steps."""
        if self.every is not None and state.global_step % self.every == 0:
            self._measure(state, control, model)

    def on_evaluate(self, args, state, control, model=None, processing_class=None, **_kwargs):
        """Measures at every evaluation, unless `every` is set.

        An evaluation before the training measures the base losses only.
        """
        if self._tokens is None:
            self._prepare(state, model, processing_class)
        elif self.every is None:
            self._measure(state, control, model)

    def on_train_end(self, args, state, control, model=None, **_kwargs):
        """Measures the model that comes out, which may be an earlier one than the last step's.

        A Trainer with `load_best_model_at_end` has loaded the best checkpoint by now.
        """
        self._measure(state, control, model, ended=True)
        if self._below_limit is not None and self._is_above_limit():
            self._below_limit.restore(model)
            self.prediction = self._below_limit.prediction
            logger.warning(
                "ForgettingProbe: the model has the weights of step %d back, the last measured at "
                "or below the limit of %g nats",
                self._below_limit.step,
                self.limit,
            )

    def _prepare(self, state: Any, model: Any, processing_class: Any) -> None:
        """Tokenises the probes as the experiment did, and finds their base losses."""
        if self._tokens is None:
            self._tokens = self._tokenise_probes(processing_class)
        stored = self.predictor.base_losses
        if self.base_losses is not None:
            return
        if state.global_step == 0:
            losses = self._losses(model)
            self._check_finite(losses, "of the base model")
            single = all(parameter.dtype == torch.float32 for parameter in model.parameters())
            self.predictor.check_base(losses, "ForgettingProbe", single_precision=single)
            self.base_losses = losses
        elif stored is not None:
            self.base_losses = np.asarray(stored, dtype=np.float64)
        else:
            raise LetheError(
                f"ForgettingProbe: the training resumes at step {state.global_step}, so the base "
                "model is no longer in memory, and the predictor does not have its losses; give "
                "base_losses, which the probe of the first start has as probe.base_losses"
            )

    def _tokenise_probes(self, processing_class: Any) -> Sequence[Tokens]:
        tokenizer = self._tokenizer or tokenizer_of(processing_class)
        if tokenizer is None:
            raise LetheError(
                "ForgettingProbe: the trainer has no tokenizer; give the model's as tokenizer=..."
            )
        predictor = self.predictor
        template = predictor.chat_template
        if template is not None and template != (getattr(tokenizer, "chat_template", None) or ""):
            # The trainer's own tokenizer keeps its template.
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.chat_template = template or None
        tokens = tokenise(
            tokenizer,
            predictor.probes,
            max_tokens=predictor.max_tokens,
            truncation=predictor.truncation,
            include_eos=predictor.include_eos,
        ).examples
        self._check_tokens(tokens)
        return tokens

    def _check_tokens(self, tokens: Sequence[Tokens]) -> None:
        """Raises LetheError if a probe has no scored token, or not as many as in the experiment."""
        for i, example in enumerate(tokens):
            if not example.scored:
                raise LetheError(
                    f"ForgettingProbe: probe {self._probe_name(i)} has no scored token within "
                    f"{self.predictor.max_tokens} tokens, so its loss is unknown. The tokenizer or "
                    "its chat template is not the one of the experiment; give the tokenizer of the "
                    "experiment's model as tokenizer=..."
                )
        different = self.predictor.probes_of_other_length([example.scored for example in tokens])
        if len(different):
            i = different[0]
            raise LetheError(
                f"ForgettingProbe: probe {self._probe_name(i)} has {tokens[i].scored} scored "
                f"tokens here, but {self.predictor.scored_tokens[i]} in the predictor's "
                "experiment. The tokenizer or its chat template is not the one of the experiment; "
                "give the tokenizer of the experiment's model as tokenizer=..."
            )

    def _check_finite(self, losses: np.ndarray, subject: str) -> None:
        broken = np.flatnonzero(~np.isfinite(losses))
        if len(broken):
            first = int(broken[0])
            raise LetheError(
                f"ForgettingProbe: the loss {subject} on probe {self._probe_name(first)} is "
                f"{losses[first]} ({len(broken)} of {len(losses)} probes), so forgetting "
                "cannot be predicted. Check the weights for NaN; if the training diverged, lower "
                "the learning rate or clip gradients"
            )

    def _probe_name(self, probe: int) -> str:
        return repr(self.predictor.example_ids[int(self.predictor.index[probe])])

    def _measure(self, state: Any, control: Any, model: Any, *, ended: bool = False) -> None:
        """Scores the probes, predicts and logs, and stops the training above the limit."""
        step = state.global_step
        losses = self._losses(model)
        self._check_finite(losses, f"at step {step}")
        if self._is_measured(step, losses):
            return
        self._last = (step, losses)
        rises = losses - self.base_losses
        self.prediction = self.predictor.predict(rises, other=self.other)
        mean = self.prediction.mean.value
        if not np.isfinite(mean):
            raise LetheError(
                f"ForgettingProbe: the forgetting predicted at step {step} is {mean}; check the "
                f"predictor ({self.predictor.method}) for NaN"
            )
        record = _record(self.prediction, rises)
        # `history` also has the former name, because scripts read it. It is not logged.
        former = {"forgetting/probes": record["probes/mean_rise"]}
        self.history.append({"step": step, **record, **former})
        self._log(record, control)
        self._act_on_limit(step, model, control, ended)

    def _log(self, record: dict[str, float], control: Any) -> None:
        """Logs to the trainer's loggers, and leaves the trainer's own logs as they would be."""
        trainer = self._trainer
        if trainer is None:
            return
        # After a log, a trainer takes the loss that was due at this step for logged.
        was_due = control.should_log
        log = trainer.log
        if getattr(type(trainer).log, "__module__", "").startswith("trl."):
            # Imported here because other parts of this wing do without it.
            from transformers import Trainer

            # The log of trl's trainers also averages and clears their own metrics.
            log = partial(Trainer.log, trainer)
        log(record)
        control.should_log = was_due

    def _act_on_limit(self, step: int, model: Any, control: Any, ended: bool) -> None:
        """Stops the training above the limit, and else keeps the weights if that is wished."""
        if not self._is_above_limit():
            if self.keep_below_limit:
                self._below_limit = BelowLimit.of(model, step, self.prediction)
            return
        control.should_training_stop = True
        logger.warning(
            "ForgettingProbe: %s at step %d: %.3f nats predicted to be forgotten, limit %g; "
            "at risk: %s",
            "above the limit" if ended else "stopped",
            step,
            self.prediction.mean.value,
            self.limit,
            ", ".join(self.at_risk) or "no domain",
        )

    def _is_above_limit(self) -> bool:
        """Whether the last prediction's mean is above the limit."""
        if self.limit is None or self.prediction is None:
            return False
        return self.prediction.mean.value > self.limit

    def _is_measured(self, step: int, losses: np.ndarray) -> bool:
        """True if the last measurement was at this step and no other weights were loaded since."""
        if self._last is None or self._last[0] != step:
            return False
        return np.allclose(losses, self._last[1], rtol=0, atol=SAME_WEIGHTS)

    def _losses(self, model: Any) -> np.ndarray:
        """Losses (k,) of the probes in nats per scored token."""
        # Modes are restored per module, because you may keep some modules in evaluation mode.
        modes = [(module, module.training) for module in model.modules()]
        random_state = torch.get_rng_state()
        losses = score(model, self._tokens, self.tokens_per_batch, title="probes").losses
        torch.set_rng_state(random_state)
        for module, mode in modes:
            module.training = mode
        return losses.astype(np.float64)


def _check_same_examples(path: Path, drawn: Sequence[UpstreamExample]) -> None:
    """Raises LetheError if a file that exists does not hold exactly these examples."""
    try:
        existing = list(read_upstream(path))
    except LetheError:
        existing = None
    if existing != list(drawn):
        raise LetheError(
            f"ForgettingProbe: {path}: exists and does not hold the {len(drawn)} examples that "
            "were drawn, and nothing is overwritten; give another output"
        )


def _record(prediction: Prediction, rises: np.ndarray) -> dict[str, float]:
    """Values that are logged of a prediction from rises in loss (k,) of the probes, in nats."""
    record = {
        "forgetting/mean": prediction.mean.value,
        "forgetting/mean_low": prediction.mean.low,
        "forgetting/mean_high": prediction.mean.high,
        "forgetting/low": float(prediction.low.mean()),
        "forgetting/high": float(prediction.high.mean()),
        "probes/mean_rise": float(rises.mean()),
    }
    for domain, mean in prediction.domains.items():
        record[f"forgetting/{domain}"] = mean.value
        record[f"forgetting/{domain}/low"] = mean.low
        record[f"forgetting/{domain}/high"] = mean.high
    return record


def _check_other(predictor: Predictor, other: np.ndarray) -> None:
    """Raises LetheError if a row of another model does not fit the predictor."""
    if predictor.other is None:
        raise LetheError(
            "ForgettingProbe: other is a row of another model, but the predictor holds no rows of "
            "one; make it by Predictor.from_results(..., sibling=folder)"
        )
    examples = len(predictor.example_ids)
    if np.shape(other) != (examples,):
        raise LetheError(
            f"ForgettingProbe: other has shape {np.shape(other)}, but the predictor has {examples} "
            "examples; give one value per example, in the order of predictor.example_ids"
        )


def tokenizer_of(processing_class: Any) -> Any:
    """The tokenizer of a trainer's processing class, which may be a processor that holds one.

    Returns None if there is no tokenizer, as in a processor of images alone.
    """
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    return tokenizer if hasattr(tokenizer, "eos_token_id") else None
