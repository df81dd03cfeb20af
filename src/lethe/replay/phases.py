"""Replayed examples that are chosen while the training runs: the strategies online and closed_loop.

The half-trained model is probed on a few replayable examples, the rest of the task's row is
predicted from the rows of other tasks, and the remaining replayed examples are drawn by the
prediction. The task's own row and the held-out examples play no part.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lethe.completion import make
from lethe.completion.probes import choose_probes
from lethe.config.replay_settings import ReplayRun
from lethe.engine.phased_steps import Measure, PhaseDraw
from lethe.errors import LetheError
from lethe.replay.strategies import STRATEGIES, ByForgetting, Choice, Pool


def scale_of_forgetting(training_rows: np.ndarray, measured: np.ndarray) -> float:
    """The factor that brings half-trained forgetting to the size of complete rows.

    The size of a row is the root mean square of its forgetting at the probes. The factor is the
    median size of the training rows divided by the size of the measured values. So the prediction
    says which examples are forgotten more than others. It does not say how much this task forgets
    in all, because that is settled only when its training ends, and its own row is never read.

    Parameters
    ----------
    training_rows
        Forgetting (M, k) of the probes by the tasks that the prediction rests on, nats.
    measured
        Forgetting (k,) of the probes by the half-trained model, nats.

    Returns
    -------
    The factor; 1 if nothing has changed yet, or no training row knows the probes.
    """
    measured_rows = training_rows[np.isfinite(training_rows).any(axis=1)]
    size = float(np.sqrt(np.mean(np.square(measured))))
    if size == 0 or not len(measured_rows):
        return 1.0
    return float(np.median(np.sqrt(np.nanmean(np.square(measured_rows), axis=1)))) / size


@dataclass(frozen=True)
class PhasedChoice:
    """The chooser of a training with the strategy `online` or `closed_loop`.

    The first phase replays the examples that the strategy `random` replays with the same seed, if
    all replayable examples have a base loss. Examples that were replayed before are neither probed
    nor drawn again, while enough others are left: a text that was trained on says little about
    similar ones.

    Parameters
    ----------
    pool
        The replayable examples, with base losses and training rows.
    run
        The settings of the run.
    count
        Number of replayed examples of the whole training.
    seed
        Of the draws.
    options
        Settings of completion methods by their names.
    """

    pool: Pool
    run: ReplayRun
    count: int
    seed: Sequence[int]
    options: Mapping[str, dict]

    @classmethod
    def of(
        cls,
        pool: Pool,
        run: ReplayRun,
        *,
        count: int,
        seed: Sequence[int],
        options: Mapping[str, dict] | None = None,
    ) -> "PhasedChoice":
        """The chooser, without examples whose base loss is unknown.

        Raises
        ------
        LetheError
            If the pool lacks something that the strategy needs, or no example is left.
        """
        STRATEGIES[run.strategy].check(pool, run)
        measured = np.flatnonzero(np.isfinite(pool.base_losses))
        if not len(measured):
            raise LetheError(f"replay {run.name}: no replayable example has a base loss")
        usable = Pool(
            examples=[pool.examples[number] for number in measured],
            base_losses=pool.base_losses[measured],
            training_rows=pool.training_rows[:, measured],
        )
        return cls(pool=usable, run=run, count=count, seed=seed, options=options or {})

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the steps after which the model is probed."""
        return tuple(self.run.probe_after)

    def settings(self) -> dict[str, Any]:
        """All that the choice depends on beside the examples, as JSON values."""
        return {
            "run": self.run.model_dump(mode="json"),
            "count": self.count,
            "seed": [int(number) for number in self.seed],
            "options": {self.run.prediction: self.options.get(self.run.prediction, {})},
            "base_losses": _digest(self.pool.base_losses),
            "training_rows": _digest(self.pool.training_rows),
        }

    def choose_first(self) -> PhaseDraw:
        """Draws all examples at random."""
        choice = STRATEGIES["random"].choose(self.pool, self.run, self.count, self.seed)
        return PhaseDraw(choice.indices.tolist(), {"probes": [], "draw": facts_of(choice)})

    def choose_rest(
        self, phase: int, count: int, replayed: Sequence[int], measure: Measure
    ) -> PhaseDraw:
        """Probes the model, predicts the row, and draws the examples that remain.

        Raises
        ------
        LetheError
            If no probe has a finite loss.
        """
        fresh = np.ones(len(self.pool.examples), dtype=bool)
        fresh[list(replayed)] = False
        probes = self._probes(fresh)
        forgetting = np.asarray(measure(probes.tolist()), dtype=float)
        finite = np.isfinite(forgetting)
        if not finite.any():
            raise LetheError(
                f"replay {self.run.name}: none of {len(probes)} probes has a finite loss in the "
                "middle of the training; lower recipe.lr"
            )
        scores, scale = self._predict(probes[finite], forgetting[finite])
        if np.isfinite(scores[fresh]).sum() >= count:
            scores[~fresh] = np.nan
        choice = ByForgetting().choose(
            replace(self.pool, forgetting=scores), self.run, count, [*self.seed, phase]
        )
        facts = {
            "probes": [self.pool.examples[number].example_id for number in probes],
            "scale": scale,
            "draw": facts_of(choice),
        }
        return PhaseDraw(choice.indices.tolist(), facts)

    def _probes(self, fresh: np.ndarray) -> np.ndarray:
        """Numbers (k,) of the probed examples, among those not replayed yet if they suffice."""
        can_be_probed = np.isfinite(self.pool.training_rows).any(axis=0)
        if not can_be_probed.any():
            raise LetheError(
                f"replay {self.run.name}: no replayable example has been measured on another task"
            )
        allowed = can_be_probed & fresh
        if allowed.sum() < self.run.probes:
            allowed = can_be_probed
        return choose_probes(
            self.pool.training_rows,
            min(self.run.probes, int(allowed.sum())),
            self.run.probe_choice,
            seed=int(self.seed[0]),
            domains=self.pool.domains,
            allowed=allowed,
        )

    def _predict(self, probes: np.ndarray, forgetting: np.ndarray) -> tuple[np.ndarray, float]:
        """Predicted forgetting (n,) at the size of complete rows, and the scale of the probes."""
        training_rows = self.pool.training_rows
        scale = scale_of_forgetting(training_rows[:, probes], forgetting)
        completer = make(self.run.prediction, dict(self.options)).fit(training_rows)
        predicted = np.array(completer.predict(probes, scale * forgetting), dtype=float)
        predicted[~np.isfinite(training_rows).any(axis=0)] = np.nan
        predicted[probes] = scale * forgetting
        return predicted, scale


def facts_of(choice: Choice) -> dict[str, Any]:
    """The numbers that describe a choice, as JSON values."""
    return {
        "effective_sample_size": choice.effective_sample_size,
        "pool": choice.pool,
        "temperature": choice.temperature,
    }


def _digest(values: np.ndarray) -> str:
    """SHA-256 of an array's values."""
    return hashlib.sha256(np.ascontiguousarray(values, dtype=float).tobytes()).hexdigest()
