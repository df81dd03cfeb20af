"""The steps of a training: gradients in passes, clipping, AdamW, checkpoints."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from lethe.engine import distributed
from lethe.engine.averaging import WeightAverage
from lethe.engine.batch_runner import out_of_memory
from lethe.engine.checkpoints import Checkpoint, optimizer_tensors, restore_optimizer
from lethe.engine.objectives import Objective, Part, Step
from lethe.engine.progress import progress
from lethe.engine.schedule import Schedule
from lethe.errors import LetheError

_log = logging.getLogger("lethe.engine")


class Penalty(Protocol):
    """A term that is added to the gradients of each step."""

    def pull(self) -> None:
        """Adds the term's gradient to the parameters' gradients."""
        ...


class Resumable(Protocol):
    """A source of steps with a state of its own, which checkpoints hold beside the losses."""

    def facts(self) -> dict[str, Any]:
        """The state as JSON values."""
        ...

    def restore(self, facts: dict[str, Any]) -> None:
        """Restores the state that `facts` returned."""
        ...


@dataclass(frozen=True)
class LoopSettings:
    """Settings of a training loop, from a recipe or from pretraining.

    Attributes
    ----------
    section
        Section of the experiment that the settings are from, for errors.
    micro_batch
        Examples per pass; None: a process's share of the batch.
    checkpoint_steps
        Steps between two planned checkpoints; None: only when the checkpoint is due.
    smaller
        Remedy if a single example does not fit into memory, for errors.
    """

    section: str
    lr: float
    max_grad_norm: float
    seed: int
    micro_batch: int | None
    checkpoint_steps: int | None
    smaller: str


class TrainingLoop:
    """Model, optimizer, objective and penalty, step by step.

    Parameters
    ----------
    optimizer_name
        Only the state of plain `adamw` is saved in checkpoints.
    penalty
        A term that is added to the gradients; None: no such term.
    average
        Average of the weights that takes their place at the end; None: the last step's weights.
    """

    def __init__(
        self,
        model: Any,
        *,
        settings: LoopSettings,
        optimizer: torch.optim.Optimizer,
        optimizer_name: str,
        schedule: Schedule,
        objective: Objective,
        penalty: Penalty | None = None,
        average: WeightAverage | None = None,
    ):
        self.model = model
        self.settings = settings
        self.optimizer = optimizer
        self.optimizer_name = optimizer_name
        self.schedule = schedule
        self.objective = objective
        self.penalty = penalty
        self.average = average
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.micro_batch = settings.micro_batch
        # Steps that an interrupted run took.
        self.resumed_steps = 0

    def run(
        self,
        step_at: Callable[[int], Step],
        steps: int,
        title: str,
        checkpoint: Checkpoint,
        source: Resumable | None = None,
    ) -> list[float]:
        """Takes the steps that an interrupted run left over.

        Parameters
        ----------
        step_at
            The examples of a step, by its number from 0. It is called right before the step is
            taken, in the order of the steps.
        source
            State behind `step_at` that a run which resumes must restore; None: there is none.

        Returns
        -------
        The losses (steps,) of all steps in nats, those before an interruption included.

        Raises
        ------
        LetheError
            If the loss becomes NaN or infinite, or a single example does not fit into memory.
        """
        torch.manual_seed(self.settings.seed + distributed.rank())
        losses = self._resume(checkpoint, source)
        self.resumed_steps = len(losses)
        self.model.train()
        remaining = range(self.resumed_steps, steps)
        bar = progress(remaining, title, "step", initial=self.resumed_steps, total=steps)
        for number in bar:
            losses.append(self.take(step_at(number), number, title))
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
            if self._must_save(checkpoint, len(losses)) and len(losses) < steps:
                self._save(checkpoint, losses, source)
                checkpoint.leave_if_asked(f"{title}, step {len(losses)} of {steps}")
        if self.average is not None:
            self.average.apply()
        self.model.eval()
        return losses

    def take(self, step: Step, number: int, title: str) -> float:
        """Takes one step; its loss in nats, measured before the weights change."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * self.schedule.factor(number)
        while (total := self._gradients(step, number, title)) is None:
            self.optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        if not math.isfinite(total):
            raise self._diverged(total, number, title)
        if self.penalty is not None:
            self.penalty.pull()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _gradients(self, step: Step, number: int, title: str) -> float | None:
        """Adds up a step's gradients; its loss, or None if smaller passes must be tried."""
        try:
            return self._passes(step, number, title)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            # With several processes, the others would wait for this one in the middle of a pass.
            if not out_of_memory(error) or distributed.size() > 1:
                raise
        size = self.micro_batch or max(len(step.new), len(step.replayed))
        if size == 1:
            tokens = max(len(example.ids) for example in step.new + step.replayed)
            raise LetheError(
                f"{title}: one example of up to {tokens} tokens does not fit into memory; "
                f"{self.settings.smaller}"
            )
        self.micro_batch = -(-size // 2)
        _log.warning("%s: out of memory; %d examples per pass now", title, self.micro_batch)
        return None

    def _passes(self, step: Step, number: int, title: str) -> float:
        """Adds up the gradients of all passes of a step; the step's loss."""
        processes = distributed.size()
        total = 0.0
        for parts in self.objective.parts(step, self.micro_batch):
            if not parts:
                continue
            # Every process takes equally many passes; a filler counts nothing.
            for part in distributed.share_of(parts, _weightless(parts[0])):
                loss = self.objective.loss(self.model, part, self.device)
                if processes == 1 and not torch.isfinite(loss):
                    raise self._diverged(loss.item(), number, title)
                # Sharded gradients are averaged over the processes; the loss is their sum.
                (loss if processes == 1 else loss * processes).backward()
                total += loss.item()
        return sum(distributed.all_gather(total))

    def _diverged(self, loss: float, number: int, title: str) -> LetheError:
        section = self.settings.section
        return LetheError(f"{title}: loss {loss} at step {number}; lower {section}.lr")

    def _must_save(self, checkpoint: Checkpoint, steps: int) -> bool:
        due = checkpoint.due()
        planned = self.settings.checkpoint_steps
        return due or (planned is not None and steps % planned == 0)

    def _save(self, checkpoint: Checkpoint, losses: list[float], source: Resumable | None) -> None:
        # The state of bitsandbytes' optimizers is not saved: such a run starts over.
        if self.optimizer_name != "adamw":
            checkpoint.skip()
            return
        tensors = optimizer_tensors(self.model, self.optimizer)
        # Every process draws its own dropout.
        for rank, states in enumerate(distributed.all_gather(self._random_states())):
            tensors |= {f"{name}/{rank}": state for name, state in states.items()}
        if self.average is not None:
            tensors |= self.average.tensors()
        facts = {"losses": losses}
        if source is not None:
            facts |= source.facts()
        checkpoint.save("training", tensors, facts)

    def _resume(self, checkpoint: Checkpoint, source: Resumable | None) -> list[float]:
        """Restores the state of an interrupted run; the losses of its steps."""
        if (saved := checkpoint.load("training")) is None:
            return []
        tensors, facts = saved
        rank = distributed.rank()
        if any(f"{name}/{rank}" not in tensors for name in self._random_states()):
            # Written by another version of lethe.
            return []
        if source is not None:
            source.restore(facts)
        restore_optimizer(self.model, self.optimizer, tensors, len(facts["losses"]))
        if self.average is not None:
            self.average.restore(tensors)
        torch.set_rng_state(tensors[f"random/{rank}"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors[f"random_cuda/{rank}"], self.device)
        return facts["losses"]

    def _random_states(self) -> dict[str, torch.Tensor]:
        states = {"random": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["random_cuda"] = torch.cuda.get_rng_state(self.device)
        return states


def _weightless(part: Part) -> Part:
    """The same pass with weight 0 of every term."""
    return replace(
        part,
        text=None if part.text is None else 0.0,
        divergence=None if part.divergence is None else 0.0,
        prompt=None if part.prompt is None else 0.0,
    )
