"""The learning rate over the steps of a training: linear warm-up, then decay.

transformers' `get_scheduler` is not used, because its numbers differ: its first step has rate 0 and
its cosine ends at 0, while fine-tunes start at 1 / (warm-up + 1) of the rate and pretraining ends
at a twentieth of it. Its scheduler also has a state of its own to save; here the rate follows from
the number of the step.
"""

import math
from dataclasses import dataclass
from typing import Self

from lethe.config.model_settings import Pretraining, Recipe


@dataclass(frozen=True)
class Schedule:
    """Factor on the learning rate at each step, counted from 0.

    Attributes
    ----------
    decay
        `linear` and `cosine` end at 0, `cosine_to_twentieth` at 0.05; `constant` stays at 1.
    ramp
        The warm-up's steps are 1 / ramp, 2 / ramp, ... of the rate.
    """

    steps: int
    warmup_steps: int
    ramp: int
    decay: str

    @classmethod
    def of_recipe(cls, recipe: Recipe, steps: int) -> Self:
        """A fine-tune's schedule: the first step after the warm-up has the full rate."""
        ramp = recipe.warmup_steps + 1
        return cls(steps=steps, warmup_steps=recipe.warmup_steps, ramp=ramp, decay=recipe.decay)

    @classmethod
    def of_pretraining(cls, settings: Pretraining) -> Self:
        """Pretraining's schedule: the last step of the warm-up has the full rate."""
        return cls(
            steps=settings.steps,
            warmup_steps=settings.warmup_steps,
            ramp=settings.warmup_steps,
            decay="cosine_to_twentieth",
        )

    def factor(self, step: int) -> float:
        """Factor from 0 to 1 at a step."""
        if step < self.warmup_steps:
            return (step + 1) / self.ramp
        length = max(1, self.steps - self.warmup_steps)
        remaining = (self.steps - step) / length
        if self.decay == "linear":
            return max(0.0, remaining)
        if self.decay == "cosine":
            return max(0.0, 0.5 - 0.5 * math.cos(math.pi * remaining))
        if self.decay == "cosine_to_twentieth":
            passed = (step - self.warmup_steps) / length
            return 0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * passed))
        return 1.0
