"""Predicts, while a model is being fine-tuned by a Trainer, what it is forgetting."""

import sys
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from transformers import TrainerCallback

from lethe.completion.predictor import Prediction, Predictor
from lethe.data.tokens import tokenise
from lethe.engine.scoring import score
from lethe.errors import LetheError


class ForgettingProbe(TrainerCallback):
    """A callback for transformers' Trainer and those built on it, such as trl's SFTTrainer.

    Before the first step it scores the predictor's probes on the model as it is: the base. Then,
    at every evaluation or every `every` steps, it scores them again, predicts the forgetting of
    all upstream examples and logs it in nats: `forgetting/mean` with `forgetting/low` and
    `forgetting/high`, and `forgetting/<domain>`. The training is not touched: no random number is
    drawn, modes and gradients stay as they were.

        probe = ForgettingProbe.attach(trainer, "predictor.npz", limit=0.1)

    Parameters
    ----------
    predictor
        A `lethe.completion.predictor.Predictor`, or the file of one.
    every
        Steps between two measurements; none: at every evaluation, and at the end.
    limit
        Stops the training when the mean predicted forgetting is above so many nats.
    risk
        Domains predicted to lose more than so many nats are named as at risk.
    tokenizer
        Of the model; none: the trainer's processing class.
    base_losses
        Losses (k,) of the probes under the base model. Needed when a training is resumed, where
        the model in hand is the base no more; `probe.base_losses` of the first start.
    """

    def __init__(
        self,
        predictor: Predictor | Path | str,
        *,
        every: int | None = None,
        limit: float | None = None,
        risk: float = 0.1,
        tokenizer: Any = None,
        base_losses: np.ndarray | None = None,
        tokens_per_batch: int = 2048,
    ):
        known = isinstance(predictor, Predictor)
        self.predictor = predictor if known else Predictor.load(predictor)
        self.every, self.limit, self.risk = every, limit, risk
        self.base_losses, self.tokens_per_batch = base_losses, tokens_per_batch
        self.history: list[dict[str, float]] = []
        self.prediction: Prediction | None = None
        self._tokenizer, self._trainer, self._tokens = tokenizer, None, None

    @classmethod
    def attach(cls, trainer: Any, predictor: Predictor | Path | str, **options: Any) -> Self:
        """Makes a probe, adds it to a trainer, and logs to the trainer's own loggers."""
        probe = cls(predictor, **options)
        probe._trainer = trainer
        trainer.add_callback(probe)
        return probe

    @property
    def at_risk(self) -> list[str]:
        """Domains predicted to lose more than `risk` nats, most first."""
        if self.prediction is None:
            return []
        means = self.prediction.by_domain(self.predictor.domains)
        return [domain for domain, mean in means.items() if mean > self.risk]

    def on_train_begin(self, args, state, control, model=None, processing_class=None, **_kwargs):
        """Scores the probes on the base model.

        Raises
        ------
        LetheError
            If the training goes on from a checkpoint and no base losses were given.
        """
        tokenizer = self._tokenizer or processing_class
        if tokenizer is None:
            raise LetheError("ForgettingProbe: give the model's tokenizer; the trainer has none")
        chosen, p = self.predictor.probes, self.predictor
        self._tokens = tokenise(tokenizer, chosen, p.max_tokens, "right", p.include_eos).examples
        if self.base_losses is None:
            if state.global_step > 0:
                raise LetheError(
                    f"ForgettingProbe: the training goes on from step {state.global_step}, so the "
                    "model is the base no more; give base_losses, which the first start's probe "
                    "has as probe.base_losses"
                )
            self.base_losses = self._losses(model)

    def on_step_end(self, args, state, control, model=None, **_kwargs):
        """Measures every `every` steps."""
        if self.every is not None and state.global_step % self.every == 0:
            self._measure(state, control, model)

    def on_evaluate(self, args, state, control, model=None, **_kwargs):
        """Measures at every evaluation, unless `every` says when."""
        if self.every is None:
            self._measure(state, control, model)

    def on_train_end(self, args, state, control, model=None, **_kwargs):
        """Measures the model that comes out."""
        self._measure(state, control, model)

    def _measure(self, state: Any, control: Any, model: Any) -> None:
        if self.history and self.history[-1]["step"] == state.global_step:
            return
        values = self._losses(model) - self.base_losses
        self.prediction = self.predictor.predict(values)
        means = self.prediction.by_domain(self.predictor.domains)
        told = {
            "forgetting/mean": float(self.prediction.forgetting.mean()),
            "forgetting/low": float(self.prediction.low.mean()),
            "forgetting/high": float(self.prediction.high.mean()),
            "forgetting/probes": float(np.nanmean(values)),
        } | {f"forgetting/{domain}": mean for domain, mean in means.items()}
        self.history.append({"step": state.global_step, **told})
        if self._trainer is not None:
            self._trainer.log(told)
        if self.limit is not None and told["forgetting/mean"] > self.limit:
            control.should_training_stop = True
            mean, risks = told["forgetting/mean"], ", ".join(self.at_risk) or "no domain"
            print(
                f"ForgettingProbe: stopped at step {state.global_step}: {mean:.3f} nats predicted "
                f"to be forgotten, limit {self.limit}; at risk: {risks}",
                file=sys.stderr,
            )

    def _losses(self, model: Any) -> np.ndarray:
        # Modes are put back module by module: a user may hold some of them in evaluation.
        modes = [(module, module.training) for module in model.modules()]
        random = torch.get_rng_state()
        losses = score(model, self._tokens, self.tokens_per_batch, "probes").losses
        torch.set_rng_state(random)
        for module, mode in modes:
            module.training = mode
        return losses.astype(np.float64)
