"""The loss of one training step: new examples, and replayed ones by the replay term's objective."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from lethe.config.model_settings import Recipe
from lethe.data.tokens import Tokens
from lethe.engine import distributed
from lethe.engine.batches import (
    Batch,
    announce_prompts,
    collate,
    example_means,
    head_inputs,
    model_of,
    position_logits,
    token_losses,
)
from lethe.engine.divergence import LogitTargets, Targets, weighted_divergence
from lethe.engine.mixture import mix
from lethe.engine.teacher import (
    LiveTeacher,
    StoredTeacher,
    Teacher,
    frozen_copy,
    frozen_teacher,
    has_sliceable_head,
)
from lethe.errors import LetheError


@dataclass(frozen=True)
class ReplayTerm:
    """Replayed upstream examples, and how they enter the loss.

    Parameters
    ----------
    examples
        Upstream examples for a job, their tokens for the training loop; in the order of replay.
    objective
        `text`: cross-entropy on the replayed text. `kl`: KL(base || model) over the vocabulary
        at the same tokens. `both`: half of each.
    weight
        Lambda, the weight of a replayed token (`token`) or of the replay term (`step`).
    dose
        `mixed`: replayed examples are mixed into the stream and count as new ones (paper, section
        5); with objective `text` and weight 1 only. `token`: the same stream, and a step's loss is
        (sum over new tokens + lambda x sum over replayed tokens) / (new tokens + lambda x replayed
        tokens). `step`: the stream of new examples stays, and each step's loss gets lambda x the
        mean over its replayed tokens; steps share the replayed examples evenly.
    accounting
        `add`: all new examples stay. `swap`: the last new examples make room.
    teacher
        `live`: the base model runs beside the trained one. `stored`: its distributions are
        computed once per replayed example.
    teacher_dtype
        Type of the weights of a live teacher that is a copy.
    top_k
        Words per token that a stored teacher keeps, the others as one; None: all words.
    chooser
        A `lethe.engine.phased_steps.ReplayChooser`, which chooses the replayed ones among
        `examples` while the training runs; None: all are replayed.
    weights
        As how many examples each counts; None: all as one. `token` counts an example's loss and its
        tokens so often, `step` its loss only: in a step with one replayed example, a mean would
        cancel the weight. `mixed` has no such weights.

    Raises
    ------
    LetheError
        If `mixed` comes with weights, or with another objective or weight than text and 1, or a
        value is unknown.
    """

    examples: Sequence[Any] = ()
    objective: Literal["text", "kl", "both"] = "text"
    weight: float = 1.0
    dose: Literal["mixed", "token", "step"] = "mixed"
    accounting: Literal["add", "swap"] = "add"
    teacher: Literal["live", "stored"] = "live"
    teacher_dtype: Literal["float32", "bfloat16"] = "float32"
    top_k: int | None = None
    chooser: Any = None
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        choices = {
            "objective": ("text", "kl", "both"),
            "dose": ("mixed", "token", "step"),
            "accounting": ("add", "swap"),
            "teacher": ("live", "stored"),
            "teacher_dtype": ("float32", "bfloat16"),
        }
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise LetheError(
                    f"replay.{key}: {getattr(self, key)!r} is none of {', '.join(allowed)}"
                )
        if not 0 <= self.weight < float("inf"):
            raise LetheError(f"replay.weight: {self.weight} is negative or infinite")
        if self.dose == "mixed" and (self.objective, self.weight) != ("text", 1.0):
            raise LetheError(
                f"replay.dose mixed goes with objective text and weight 1, not with "
                f"{self.objective} and {self.weight}; set dose to token or step"
            )
        if self.weights is not None:
            self._check_weights(self.weights)

    def _check_weights(self, weights: Sequence[float]) -> None:
        if self.dose == "mixed":
            raise LetheError(
                "replay.dose mixed counts all examples alike, and these have weights; set dose to "
                "token or step"
            )
        if len(weights) != len(self.examples) or not all(0 < w < float("inf") for w in weights):
            raise LetheError(
                f"replay: {len(self.examples)} examples need as many finite weights above 0 "
                f"(values seen: {list(weights)})"
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether the base model's distributions enter the loss."""
        return bool(self.examples) and self.objective != "text" and self.weight > 0

    def settings(self) -> dict[str, Any]:
        """All but the examples, as JSON values."""
        keys = ("objective", "weight", "dose", "accounting", "teacher", "teacher_dtype", "top_k")
        settings = {key: getattr(self, key) for key in keys}
        if self.chooser is not None:
            settings["chooser"] = self.chooser.settings()
        if self.weights is not None:
            settings["weights"] = list(self.weights)
        return settings


@dataclass(frozen=True)
class Step:
    """The examples of one optimisation step; `replayed` ones have an objective of their own."""

    new: list[Tokens]
    replayed: list[Tokens]


def plan_steps(
    new: Sequence[Tokens], replay: ReplayTerm | None, batch: int, apart: bool = False
) -> list[Step]:
    """Cuts the stream of new examples into steps, with the replayed examples of each.

    Examples without a token that carries loss are left out.

    Parameters
    ----------
    batch
        Examples per step; replayed ones count unless they have a term of their own.
    apart
        Keep replayed examples of dose `mixed` apart from the new ones. The loss is the same up to
        rounding.

    Raises
    ------
    LetheError
        If replayed examples take the places of all new ones.
    """
    if replay is None or not replay.examples:
        return [Step(part, []) for part in _batches([e for e in new if e.scored], batch)]
    if replay.accounting == "swap" and len(replay.examples) >= len(new):
        raise LetheError(
            f"replay.ratio: {len(replay.examples)} replayed examples take the places of all "
            f"{len(new)} new ones (replay.accounting: swap); lower the ratio, train for more "
            "steps, or set accounting to add"
        )
    if replay.dose == "step":
        return _steps_with_term(new, replay, batch)
    marked = mix(
        [(example, False) for example in new],
        [(example, True) for example in replay.examples],
        replay.accounting,
    )
    marked = [(example, replayed) for example, replayed in marked if example.scored]
    steps = []
    for part in _batches(marked, batch):
        if replay.dose == "mixed" and not apart:
            steps.append(Step([example for example, _ in part], []))
            continue
        new_part = [example for example, replayed in part if not replayed]
        replayed_part = [example for example, replayed in part if replayed]
        steps.append(Step(new_part, replayed_part))
    return steps


def _steps_with_term(new: Sequence[Tokens], replay: ReplayTerm, batch: int) -> list[Step]:
    """Steps of `batch` new examples each; every step gets its share of the replayed ones."""
    replayed = [example for example in replay.examples if example.scored]
    if replay.accounting == "swap":
        new = new[: max(0, len(new) - len(replayed))]
    batches = _batches([example for example in new if example.scored], batch)
    steps = []
    for number, part in enumerate(batches):
        first = number * len(replayed) // len(batches)
        last = (number + 1) * len(replayed) // len(batches)
        # A term that weighs nothing takes no pass, so that the bytes are those without replay.
        steps.append(Step(part, replayed[first:last] if replay.weight > 0 else []))
    return steps


def _batches(stream: Sequence[Any], batch: int) -> list[list[Any]]:
    return [list(stream[i : i + batch]) for i in range(0, len(stream), batch)]


@dataclass(frozen=True)
class Part:
    """The examples of one pass. Its loss is the sum of weight x mean of each kind of term.

    `text` weighs the mean cross-entropy of the tokens that carry loss, `divergence` the mean
    KL(base || model) at the same tokens, and `prompt` that at the prompts' tokens. A term that is
    None takes no part in the pass.
    """

    examples: list[Tokens]
    text: float | None
    divergence: float | None = None
    prompt: float | None = None


class Objective:
    """The loss that a step minimises.

    Parameters
    ----------
    recipe
        How the mean over a step is taken, in which type it is computed, and the weight of the KL
        at new prompts.
    replay
        The replay term, if the steps have replayed examples of their own.
    replay_teacher, prompt_teacher
        Teachers of the two KL terms; None where there is no such term.
    plain
        Whether the model's logits are its output layer's (`has_sliceable_head`).
    """

    def __init__(
        self,
        recipe: Recipe,
        replay: ReplayTerm | None = None,
        replay_teacher: Teacher | None = None,
        prompt_teacher: Teacher | None = None,
        plain: bool = False,
    ):
        self.recipe = recipe
        self.replay = replay or ReplayTerm()
        self.replay_teacher, self.prompt_teacher = replay_teacher, prompt_teacher
        self.plain = plain

    def parts(self, step: Step, size: int | None) -> list[list[Part]]:
        """The step's passes of at most `size` examples: those of new, then of replayed ones.

        The step's loss is the sum of the passes' losses. Without `size` each kind is shared evenly
        by the processes. Processes that share a model take the passes of a kind in turns.
        """
        dose, weight = self.replay.dose, self.replay.weight
        replayed = step.replayed if weight > 0 else []
        new_total = self._size(step.new)
        if dose == "step":
            new_factor = 1 / new_total if new_total else 0.0
            replayed_factor = weight / self._size(replayed) if replayed else 0.0
        else:
            total = new_total + weight * self._weighted_size(replayed)
            new_factor = 1 / total if total else 0.0
            replayed_factor = weight * new_factor
        prompts = sum(map(self._prompt_size, step.new))
        new_parts = []
        for part in _passes(step.new, size):
            # A quotient, so that the share of all is exactly 1.
            text = self._size(part) / new_total if not replayed else self._size(part) * new_factor
            new_parts.append(Part(part, text, prompt=self._prompt_weight(part, prompts)))
        replayed_parts = []
        text_share = {"text": 1.0, "kl": None, "both": 0.5}[self.replay.objective]
        divergence_share = {"text": None, "kl": 1.0, "both": 0.5}[self.replay.objective]
        for part in _passes(replayed, size):
            factor = self._weighted_size(part) * replayed_factor
            text = None if text_share is None else text_share * factor
            divergence = None if divergence_share is None else divergence_share * factor
            replayed_parts.append(Part(part, text, divergence))
        return [new_parts, replayed_parts]

    def loss(self, model: Any, part: Part, device: torch.device | str) -> torch.Tensor:
        """The pass's loss, with gradients."""
        batch = collate(part.examples, device)
        if part.divergence is None and part.prompt is None:
            with self.autocast(device):
                losses, rows = token_losses(model, batch)
            return part.text * self._mean(losses, rows, part.examples)
        text = batch.mask[:, 1:] if part.text is not None else torch.zeros_like(batch.mask[:, 1:])
        if part.divergence is None:
            positions, weight, teacher = prompt_positions(batch), part.prompt, self.prompt_teacher
        else:
            positions, weight, teacher = batch.mask[:, 1:], part.divergence, self.replay_teacher
        scales = weight * self._scales(positions, part.examples)
        with self.autocast(device):
            targets = teacher.targets(part.examples, batch, positions)
            announce_prompts(model, part.examples)
            losses, divergence = self._terms(model, batch, text, positions, targets, scales)
        if part.text is None:
            return divergence
        mean = self._mean(losses, text.nonzero()[:, 0], part.examples)
        return part.text * mean + divergence

    def _terms(
        self,
        model: Any,
        batch: Batch,
        text: torch.Tensor,
        positions: torch.Tensor,
        targets: Targets,
        scales: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy at `text` (B, T - 1), one per token, and scaled KL at `positions`."""
        both = text | positions
        words = batch.ids[:, 1:][text]
        if isinstance(targets, LogitTargets) or not self.plain:
            logits = position_logits(model_of(model), batch.ids, both).float()
            divergence = (scales * targets.divergence(logits[positions[both]])).sum()
            return F.cross_entropy(logits[text[both]], words, reduction="none"), divergence
        states, first = head_inputs(model, batch.ids, both)
        head = model_of(model).get_output_embeddings()
        divergence, _ = weighted_divergence(states[positions[both]], head, targets, scales)
        if distributed.size() > 1:
            # Shards of a model are gathered for the backward pass of what the model returned.
            divergence = divergence + 0.0 * first.float().sum()
        logits = head(states[text[both]]).float()
        return F.cross_entropy(logits, words, reduction="none"), divergence

    def autocast(self, device: torch.device | str) -> torch.autocast:
        """The recipe's type for the computation of losses."""
        reduced = self.recipe.dtype == "bfloat16"
        # A weight is cast where it is used and not stored, so that recomputed layers hold one at a
        # time.
        return torch.autocast(
            torch.device(device).type, dtype=torch.bfloat16, enabled=reduced, cache_enabled=False
        )

    def _mean(
        self, losses: torch.Tensor, rows: torch.Tensor, examples: Sequence[Tokens]
    ) -> torch.Tensor:
        """The weighted mean over a pass of losses (S,) in these rows (S,)."""
        weights = _weights(examples, losses.device)
        if self.recipe.average == "token":
            if weights is None:
                return losses.mean()
            return (losses * weights[rows]).sum() / weights[rows].sum()
        means = example_means(losses, rows, len(examples))
        return means.mean() if weights is None else (means * weights).sum() / weights.sum()

    def _scales(self, positions: torch.Tensor, examples: Sequence[Tokens]) -> torch.Tensor:
        """Weight (S,) of every position in the weighted mean over a pass; the sum is 1."""
        counts = positions.sum(1)
        rows = positions.nonzero()[:, 0]
        weights = _weights(examples, positions.device)
        if self.recipe.average == "token":
            if weights is None:
                return torch.full((len(rows),), 1 / max(1, len(rows)), device=positions.device)
            return weights[rows] / weights[rows].sum()
        if weights is None:
            return 1 / (counts[rows].float() * counts.count_nonzero())
        return weights[rows] / (counts[rows] * weights[counts > 0].sum())

    def _size(self, examples: Sequence[Tokens]) -> int:
        """How much examples count in a mean: their tokens that carry loss, or their number."""
        if self.recipe.average == "token":
            return sum(example.scored for example in examples)
        return len(examples)

    def _weighted_size(self, examples: Sequence[Tokens]) -> float:
        """The same with each example as often as its weight says."""
        return sum(example.weight * self._size([example]) for example in examples)

    def _prompt_size(self, example: Tokens) -> int:
        """How much an example counts in the mean over prompts."""
        tokens = max(0, min(example.start, len(example.ids)) - 1)
        return tokens if self.recipe.average == "token" else min(tokens, 1)

    def _prompt_weight(self, part: Sequence[Tokens], total: int) -> float | None:
        """Weight of the mean KL at the part's prompts; None if the recipe has no such term."""
        if self.prompt_teacher is None:
            return None
        share = sum(map(self._prompt_size, part)) / total if total else 0.0
        return (self.recipe.prompt_kl or 0.0) * share


def make_objective(
    model: Any,
    recipe: Recipe,
    steps: Sequence[Step],
    replay: ReplayTerm | None,
    base: Any = None,
) -> Objective:
    """The objective of a training of `model`, which is still the base model or starts from `base`.

    Call this before the model is sharded and before a checkpoint is restored into it: teachers are
    made from its weights. So a training that resumes finds the same teachers as it began with.
    Stored distributions are not computed here if a chooser chooses the replayed examples later.

    Parameters
    ----------
    base
        The base model, if `model` is already fine-tuned on something else; None: `model` itself.
    """
    replay_kl = replay is not None and replay.needs_teacher
    prompt_kl = bool(recipe.prompt_kl)
    if not (replay_kl or prompt_kl):
        return Objective(recipe, replay)
    first = (steps[0].new + steps[0].replayed)[0]
    plain = has_sliceable_head(model, first)
    teacher_model = model if base is None else base
    replay_teacher: Teacher | None = None
    live: LiveTeacher | None = None
    if prompt_kl or (replay_kl and replay.teacher == "live"):
        dtype = replay.teacher_dtype if replay_kl else "float32"
        weights = torch.bfloat16 if dtype == "bfloat16" else None
        if base is None:
            live = frozen_copy(model, plain, weights)
        elif weights is not None and replay_kl and replay.teacher == "stored":
            # Stored distributions are those of the base model as it is.
            live = frozen_teacher(copy.deepcopy(base), plain, weights)
        else:
            live = frozen_teacher(base, plain, weights)
    objective = Objective(recipe, replay, plain=plain)
    if replay_kl and replay.teacher == "stored" and replay.chooser is None:
        replayed = [example for step in steps for example in step.replayed]
        with objective.autocast(next(model.parameters()).device), torch.no_grad():
            replay_teacher = StoredTeacher(
                LiveTeacher(teacher_model, plain), replayed, replay.top_k
            )
    elif replay_kl and replay.teacher == "live":
        replay_teacher = live
    objective.replay_teacher = replay_teacher
    objective.prompt_teacher = live if prompt_kl else None
    return objective


def prompt_positions(batch: Batch) -> torch.Tensor:
    """Positions (B, T - 1) whose logits predict a token of a prompt, none in plain text."""
    # Tokens before the first that carries loss; padding stands behind it.
    after = batch.mask.int().cummax(1).values.bool()
    return ~after[:, 1:]


def _weights(examples: Sequence[Tokens], device: torch.device) -> torch.Tensor | None:
    """Weights (B,) of the examples, or None if all are 1."""
    weights = [example.weight for example in examples]
    if all(weight == 1 for weight in weights):
        return None
    return torch.tensor(weights, device=device)


def _passes(examples: Sequence[Tokens], size: int | None) -> list[list[Tokens]]:
    """Cuts examples into passes of at most `size`, or one per process."""
    if not examples:
        return []
    size = size or -(-len(examples) // distributed.size())
    if size < len(examples):
        # Passes of similar length pad least; the sum of their gradients is the same.
        examples = sorted(examples, key=lambda example: -len(example.ids))
    return _batches(examples, size)
