"""Steps of a training whose replayed examples are chosen while it runs, phase by phase.

The number of replayed examples and their steps are fixed before the training, as for every replay.
Each place in the stream is a slot. The examples that fill the slots are chosen when a phase begins:
in the first one before the training, later with losses of the half-trained model at hand. A choice
covers all slots that remain, and the next one replaces the part that was not replayed yet.
"""

import copy
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch

from lethe.data.tokens import Tokens
from lethe.engine import distributed
from lethe.engine.objectives import Objective, ReplayTerm, Step, plan_steps
from lethe.engine.teacher import LiveTeacher, StoredTeacher

# Measures forgetting (k,) of examples by their numbers in the pool (k,).
Measure = Callable[[Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class PhaseDraw:
    """The examples of a phase by their numbers in the pool, in the order of replay.

    `facts` are JSON values that describe the choice. They are part of checkpoints and of the run's
    record.
    """

    examples: list[int]
    facts: dict[str, Any] = field(default_factory=dict)


class ReplayChooser(Protocol):
    """Chooses replayed examples of a pool while the training runs.

    Attributes
    ----------
    count
        Number of replayed examples of the whole training.
    shares
        Shares of the steps, in ascending order, after which the rest is chosen again.
    """

    count: int
    shares: tuple[float, ...]

    def settings(self) -> Any:
        """All that the choice depends on, as JSON values; for the checkpoint's fingerprint."""
        ...

    def choose_first(self) -> PhaseDraw:
        """Chooses all `count` examples before the training."""
        ...

    def choose_rest(
        self, phase: int, count: int, replayed: Sequence[int], measure: Measure
    ) -> PhaseDraw:
        """Chooses the `count` examples that remain, after those in `replayed`."""
        ...


@dataclass(frozen=True)
class _Slot:
    """A place for a replayed example, by its number in the order of replay."""

    number: int
    scored: int = 1


class PhasedSteps:
    """The steps of a training with phases.

    Ask for the steps in their order, between two steps of the training: the first step of a phase
    measures the model as it is then.

    Parameters
    ----------
    new
        The stream of new examples.
    replay
        The replay term; its examples are the pool, and its chooser chooses among them.
    batch, apart
        As for `plan_steps`.
    measure
        Measures the model as it is now.
    """

    def __init__(
        self,
        new: Sequence[Tokens],
        replay: ReplayTerm,
        *,
        batch: int,
        apart: bool,
        measure: Measure,
    ):
        self._pool = replay.examples
        self._chooser = replay.chooser
        self._measure = measure
        slots = [_Slot(number) for number in range(self._chooser.count)]
        planned = replace(replay, examples=slots, chooser=None)
        self._steps = plan_steps(new, planned, batch, apart)
        # Number of the first slot at or after each step; the last entry is the number of slots.
        self._slots_before = [0]
        for step in self._steps:
            self._slots_before.append(self._slots_before[-1] + len(_slots_of(step)))
        self._starts = self._phase_starts()
        self._draws: list[PhaseDraw] = [self._chooser.choose_first()]
        self._teacher: PhaseTeacher | None = None
        self._taught_phase: int | None = None

    def __len__(self) -> int:
        return len(self._steps)

    def use_teacher(self, teacher: "PhaseTeacher") -> None:
        """Lets `teacher` learn the replayed examples of each phase when it begins."""
        self._teacher = teacher

    def at(self, number: int) -> Step:
        """The step of this number; begins its phase if that has not begun yet."""
        phase = bisect_right(self._starts, number) - 1
        while len(self._draws) <= phase:
            self._begin_phase(len(self._draws))
        if self._teacher is not None and self._taught_phase != phase:
            is_last = phase == len(self._starts) - 1
            self._teacher.learn(self._tokens_of_phase(phase), is_last=is_last)
            self._taught_phase = phase
        return self._filled(self._steps[number])

    def all_steps(self) -> list[Step]:
        """All steps with the examples that were chosen last for each slot."""
        return [self._filled(step) for step in self._steps]

    def facts(self) -> dict[str, Any]:
        """The choices so far, as JSON values for a checkpoint."""
        draws = [{"examples": draw.examples, "facts": draw.facts} for draw in self._draws]
        return {"phases": draws}

    def restore(self, facts: dict[str, Any]) -> None:
        """Restores the choices of an interrupted training."""
        self._draws = [PhaseDraw(**draw) for draw in facts["phases"]]

    def records(self) -> list[dict[str, Any]]:
        """One record per phase: its first step, the examples it replayed, and its facts."""
        records = []
        for phase, draw in enumerate(self._draws):
            numbers = self._slots_of_phase(phase)
            examples = [self._example(number) for number in numbers]
            records.append({"step": self._starts[phase], "examples": examples, **draw.facts})
        return records

    def _phase_starts(self) -> list[int]:
        """First steps of the phases; a phase without a slot would be of no use and is left out."""
        count = len(self._steps)
        possible = set()
        for share in self._chooser.shares:
            # The model must have taken a step before it is measured.
            possible.add(max(1, round(share * count)))
        starts = [0]
        for step, following in pairwise([*sorted(possible), count]):
            if step < count and self._slots_before[step] < self._slots_before[following]:
                starts.append(step)
        return starts

    def _begin_phase(self, phase: int) -> None:
        first = self._slots_before[self._starts[phase]]
        replayed = [self._example(number) for number in range(first)]
        remaining = self._slots_before[-1] - first
        self._draws.append(
            self._chooser.choose_rest(
                phase, count=remaining, replayed=replayed, measure=self._measure
            )
        )

    def _slots_of_phase(self, phase: int) -> range:
        ends = [*self._starts[1:], len(self._steps)]
        return range(self._slots_before[self._starts[phase]], self._slots_before[ends[phase]])

    def _example(self, number: int) -> int:
        """The example in a slot, by its number in the pool, as chosen last."""
        firsts = [self._slots_before[start] for start in self._starts[: len(self._draws)]]
        phase = bisect_right(firsts, number) - 1
        return self._draws[phase].examples[number - firsts[phase]]

    def _tokens_of_phase(self, phase: int) -> list[Tokens]:
        tokens = [self._pool[self._example(number)] for number in self._slots_of_phase(phase)]
        return [example for example in tokens if example.scored]

    def _filled(self, step: Step) -> Step:
        return Step(self._fill(step.new), self._fill(step.replayed))

    def _fill(self, examples: Sequence[Any]) -> list[Tokens]:
        filled = []
        for example in examples:
            if isinstance(example, _Slot):
                example = self._pool[self._example(example.number)]
            if example.scored:
                filled.append(example)
        return filled


class PhaseTeacher:
    """Stored distributions of the base model for the replayed examples of one phase at a time.

    The base model must be at hand whenever a phase begins. A model that only trains adapters is
    its own base; otherwise a copy waits in the processor's memory until the last phase has begun.
    Make this before the model is sharded or restored from a checkpoint.

    Parameters
    ----------
    objective
        Receives the distributions.
    top_k
        Words per token that are stored; None: all words.
    """

    def __init__(self, model: Any, objective: Objective, top_k: int | None):
        self._objective, self._top_k = objective, top_k
        self._device = next(model.parameters()).device
        self._is_copy = distributed.size() > 1 or not hasattr(model, "disable_adapter")
        self._base: Any = model
        if self._is_copy:
            self._base = copy.deepcopy(model).requires_grad_(False).eval().to("cpu")

    def learn(self, examples: Sequence[Tokens], *, is_last: bool) -> None:
        """Computes the distributions of a phase's examples in place of those before.

        Each phase is computed by itself, so that a training that resumes in the middle has the
        same batches, and thus the same bytes.
        """
        if self._is_copy:
            self._base.to(self._device)
        base = LiveTeacher(self._base, self._objective.plain)
        with self._objective.autocast(self._device), torch.no_grad():
            self._objective.replay_teacher = StoredTeacher(base, examples, self._top_k)
        if is_last:
            self._base = None
        elif self._is_copy:
            self._base.to("cpu")


def _slots_of(step: Step) -> list[_Slot]:
    return [example for example in step.new + step.replayed if isinstance(example, _Slot)]
