"""Rows of several shares of one fine-tune's change of the weights, without training again."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lethe.data.examples import UpstreamExample
from lethe.engine import models
from lethe.engine.interpolation import base_weights, interpolated
from lethe.engine.reader import Reader
from lethe.errors import LetheError
from lethe.matrix import rows
from lethe.measure.forgetting import Job, measure_again
from lethe.measure.own_task import measure_own_task


def rows_at_shares(
    job: Job,
    model: Any,
    tokenizer: Any,
    row: rows.Row,
    *,
    upstream: Sequence[UpstreamExample],
    shares: Sequence[float],
    title: str,
) -> Iterator[rows.Row]:
    """Scores weights between the base model's and the fine-tuned model's.

    While a row is out, `model` has the weights of its share. Afterwards it is fine-tuned again. The
    losses are those of a job with this `share_of_change`, to the bit.

    A job that is stopped here continues from its last checkpoint of the training.

    Parameters
    ----------
    job
        The fine-tune; without a share of its own.
    model, tokenizer, row
        The result of its `run` on `upstream`.
    shares
        Shares of the change, from 0 (the base model) to 1 (the fine-tuned model).

    Raises
    ------
    LetheError
        If the fine-tune has a memory or router, which is applied when the job runs.

    Yields
    ------
    The row of each share, in their order. Seconds and training tokens of the fine-tune count in the
    first row; the others are marked as further measurements of it.
    """
    if job.recipe.routing is not None:
        raise LetheError(
            f"{title}: a memory or router does not go with several shares of the weights' change; "
            "give the variant's interpolate one share"
        )
    base = None
    if job.recipe.method == "full":
        base, _ = models.load(job.card, job.scoring.weights, job.gpus)
    weights = base_weights(model, base)
    del base
    reader = Reader(model, tokenizer, job.scoring_of_base())
    for number, share in enumerate(shares):
        share_title = f"{title}, share {share:g}"
        with interpolated(model, weights, share):
            measured = measure_again(reader, upstream, row, share_title)
            after = measure_own_task(
                reader, job.evaluation, job.recipe, when="after", title=share_title
            )
            about = measured.about | after
            about["missing"] = int(np.isnan(measured.loss_after).sum())
            if number == 0:
                about["seconds"] += row.about["seconds"]
            else:
                about["measurement"] = number
            yield replace(measured, about=about)
