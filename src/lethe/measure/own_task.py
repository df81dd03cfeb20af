"""How well a model does the task that it is fine-tuned on, before and after."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lethe.config.model_settings import Recipe
from lethe.data.examples import Example
from lethe.engine.checkpoints import Checkpoint
from lethe.engine.reader import Reader
from lethe.measure.exact_match import Questions


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
    checkpoint = checkpoint or Checkpoint()

    def after_batch(_losses: np.ndarray) -> None:
        if checkpoint.due():
            checkpoint.save()
            checkpoint.leave_if_asked(f"{title}, all but the own task")

    tokens = reader.tokens(
        evaluation, max_tokens=recipe.max_tokens, truncation=recipe.truncation
    ).examples
    losses = reader.losses(tokens, f"{title}, own task {when}", after_batch=after_batch).losses
    facts: dict[str, Any] = {f"eval_loss_{when}": mean_loss(losses)}
    if when == "after":
        facts["eval_missing"] = int(np.isnan(losses).sum())
    if reader.scoring.exact_match is not None:
        longest = reader.scoring.model_copy(update={"max_tokens": recipe.max_tokens})
        questions = Questions.of(reader.tokenizer, evaluation, longest)
        answers = questions.ask(
            reader,
            title=f"{title}, own task {when}, answers",
            checkpoint=checkpoint,
            part="own_answers",
        )
        facts[f"eval_exact_match_{when}"] = float(questions.right(answers).mean())
    return facts


def mean_loss(losses: np.ndarray) -> float:
    """Mean in nats of the losses that are not NaN; NaN if all are."""
    return float(np.nanmean(losses)) if np.isfinite(losses).any() else float("nan")
