"""How well a model does the task that it is fine-tuned on, before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lethe.config.model_settings import Recipe
from lethe.data.examples import Example
from lethe.engine.checkpoints import Checkpoint
from lethe.engine.reader import Reader
from lethe.measure.exact_match import Questions


@dataclass(frozen=True)
class OwnTaskScores:
    """Results of each evaluation example.

    Attributes
    ----------
    losses
        Mean loss (E,) in nats per scored token; NaN for an example without one.
    right
        True (E,) where the answer is right; None where exact match is not measured.
    """

    losses: np.ndarray
    right: np.ndarray | None = None

    def only_where(self, routed: np.ndarray, base: "OwnTaskScores") -> "OwnTaskScores":
        """These results where `routed` (E,) is true, and those of the base model elsewhere."""
        right = None if self.right is None else np.where(routed, self.right, base.right)
        return OwnTaskScores(np.where(routed, self.losses, base.losses), right)

    def facts(self, when: str) -> dict[str, Any]:
        """The means, with the keys that `measure_own_task` describes."""
        facts: dict[str, Any] = {f"eval_loss_{when}": mean_loss(self.losses)}
        if when == "after":
            facts["eval_missing"] = int(np.isnan(self.losses).sum())
        if self.right is not None:
            facts[f"eval_exact_match_{when}"] = float(self.right.mean())
        return facts


def measure_own_task(
    reader: Reader,
    evaluation: Sequence[Example],
    recipe: Recipe,
    *,
    when: str,
    title: str,
    checkpoint: Checkpoint | None = None,
) -> dict[str, Any]:
    """Loss, and exact match where it is measured, on a task's evaluation examples.

    Parameters
    ----------
    when
        `before` or `after` the fine-tune; part of the keys of the result.
    checkpoint
        Receives the job's finished parts when it is due.

    Returns
    -------
    `eval_loss_<when>` in nats per scored token; `eval_missing`, the number of examples without a
    loss, after the fine-tune; `eval_exact_match_<when>` from 0 to 1 where exact match is measured.
    """
    scores = score_own_task(
        reader, evaluation, recipe, when=when, title=title, checkpoint=checkpoint
    )
    return scores.facts(when)


def score_own_task(
    reader: Reader,
    evaluation: Sequence[Example],
    recipe: Recipe,
    *,
    when: str,
    title: str,
    checkpoint: Checkpoint | None = None,
) -> OwnTaskScores:
    """The results of each evaluation example; the parameters are those of `measure_own_task`."""
    checkpoint = checkpoint or Checkpoint()

    def after_batch(_losses: np.ndarray) -> None:
        if checkpoint.due():
            checkpoint.save()
            checkpoint.leave_if_asked(f"{title}, all but the own task")

    tokens = reader.tokens(
        evaluation, max_tokens=recipe.max_tokens, truncation=recipe.truncation
    ).examples
    losses = reader.losses(tokens, f"{title}, own task {when}", after_batch=after_batch).losses
    right = None
    if reader.scoring.exact_match is not None:
        longest = reader.scoring.model_copy(update={"max_tokens": recipe.max_tokens})
        questions = Questions.of(reader.tokenizer, evaluation, longest)
        answers = questions.ask(
            reader,
            title=f"{title}, own task {when}, answers",
            checkpoint=checkpoint,
            part="own_answers",
        )
        right = questions.right(answers)
    return OwnTaskScores(losses, right)


def mean_loss(losses: np.ndarray) -> float:
    """Mean in nats of the losses that are not NaN; NaN if all are."""
    return float(np.nanmean(losses)) if np.isfinite(losses).any() else float("nan")


def measure_tasks(
    reader: Reader,
    evaluation: Mapping[str, Sequence[Example]],
    recipe: Recipe,
    *,
    title: str,
) -> dict[str, dict[str, float]]:
    """The results of a fine-tuned model on several tasks.

    Parameters
    ----------
    evaluation
        Evaluation examples by task.

    Returns
    -------
    `task_losses`, in nats by task, and `task_exact_match` where it is measured.
    """
    losses = {}
    exact = {}
    for task, examples in evaluation.items():
        measured = measure_own_task(
            reader, examples, recipe, when="after", title=f"{title}, {task}"
        )
        losses[task] = measured["eval_loss_after"]
        if "eval_exact_match_after" in measured:
            exact[task] = measured["eval_exact_match_after"]
    return {"task_losses": losses} | ({"task_exact_match": exact} if exact else {})
