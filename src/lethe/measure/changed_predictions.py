"""Changes beside the loss: predictions of tokens, and wrong answers that became right."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lethe.data.examples import UpstreamExample
from lethe.engine import models
from lethe.engine.prediction_changes import MEASURES, mean_prediction_changes
from lethe.engine.reader import Reader
from lethe.matrix.rows import Row
from lethe.measure.forgetting import Job
from lethe.measure.upstream_set import UpstreamSet


def measure_changed_predictions(
    job: Job,
    model: Any,
    tokenizer: Any,
    upstream: Sequence[UpstreamExample],
    row: Row,
    title: str,
) -> dict[str, np.ndarray]:
    """Compares a fine-tuned model with its base model, token by token, on the upstream examples.

    It costs a forward pass of each of the two models. A full fine-tune also needs memory for the
    base model. Where exact match is measured, the model also answers the questions that the base
    model answered wrongly.

    Parameters
    ----------
    model, tokenizer, row
        The fine-tuned model that `job.run` returned, its tokenizer and its row.
    upstream
        The examples of the row, in its order.

    Returns
    -------
    Measure -> values (N,) in float32, NaN where nothing was measured. The measures are those of
    `lethe.engine.prediction_changes.MEASURES`, means over the scored tokens of each example, and
    with exact match also `answer_gained` and `answer_by_chance` (`lethe.matrix.prediction_files`).
    """
    reader = Reader(model, tokenizer, job.scoring_of_base())
    upstream_set = UpstreamSet.of(reader, upstream)
    examples = upstream_set.tokens.examples
    measures = {}
    if upstream_set.questions is not None:
        domains = [example.domain for example in upstream]
        measures = _answer_changes(reader, upstream_set, row, domains, title)
    teacher = job.base_teacher(model, examples)
    if teacher is None:
        means = np.full((len(upstream), len(MEASURES)), np.nan, dtype=np.float32)
    else:
        with models.autocast_for(model, job.scoring.dtype):
            means = mean_prediction_changes(
                model, teacher, examples, reader.scoring.budget, f"{title}, predictions"
            )
    return dict(zip(MEASURES, means.T, strict=True)) | measures


def _answer_changes(
    reader: Reader, upstream_set: UpstreamSet, row: Row, domains: Sequence[str], title: str
) -> dict[str, np.ndarray]:
    """Answers to the questions that the base model had wrong, and how easy they are to guess."""
    questions = upstream_set.questions
    wrong = row.answers.exact_match_before != 1
    answers = questions.ask(reader, wrong, f"{title}, wrong answers")
    gained = np.where(wrong, questions.right(answers), np.nan).astype(np.float32)
    everything = []
    for of_wrong, of_right in zip(answers, row.answers.text, strict=True):
        everything.append(of_right if of_wrong is None else of_wrong)
    by_chance = questions.right_by_chance(everything, domains)
    return {"answer_gained": gained, "answer_by_chance": by_chance}
