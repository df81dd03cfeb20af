"""Which tokens of the most forgotten examples were lost? Their losses before and after."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lethe.data.examples import Example, UpstreamExample
from lethe.data.token_texts import token_texts
from lethe.data.tokens import Tokens
from lethe.engine import models
from lethe.engine.reader import Reader
from lethe.engine.teacher import as_base
from lethe.matrix.rows import Row
from lethe.matrix.token_files import MOST_LOSS, TokenLosses
from lethe.measure.forgetting import Job


def select_most_forgotten(row: Row, count: int) -> list[int]:
    """Numbers of the most forgotten examples, the most forgotten first.

    Examples without a value are left out. Equal values, as of lost answers, are ordered by the rise
    in loss and then by number.
    """
    rises = row.loss_after - row.loss_before
    order = np.lexsort((np.arange(len(rises)), -rises, -row.forgetting))
    numbers = [int(number) for number in order if np.isfinite(row.forgetting[number])]
    return numbers[:count]


def measure_tokens(
    job: Job,
    model: Any,
    tokenizer: Any,
    upstream: Iterable[UpstreamExample],
    row: Row,
    count: int,
    title: str,
) -> list[TokenLosses]:
    """Scores the most forgotten examples of a row once more, token by token.

    The base model is loaded once more, unless adapters can be switched off instead. The fine-tuned
    model leaves a GPU before that, so call this last and in one process. With a router, examples
    that the fine-tuned model is not used for keep the losses of the base model.

    Parameters
    ----------
    model, tokenizer
        The fine-tuned model that `job.run` returned, and its tokenizer.
    upstream
        The examples of the row, in its order.
    count
        Number of examples.
    """
    reader = Reader(model, tokenizer, job.scoring_of_base())
    numbers = select_most_forgotten(row, count)
    texts = _examples_at(upstream, numbers)
    examples = reader.tokens(texts).examples
    after = reader.losses_of_tokens(examples, f"{title}, tokens")
    if job.recipe.lora is not None:
        with as_base(model):
            before = reader.losses_of_tokens(examples, f"{title}, tokens before")
    else:
        model.to("cpu")
        base, _ = models.load(job.card, job.scoring.weights, job.gpus)
        before = replace(reader, model=base).losses_of_tokens(examples, f"{title}, tokens before")
    if job.recipe.routing is not None:
        for position, number in enumerate(numbers):
            # The row has the loss before, to the bit, where the prompt is not routed.
            if row.loss_after[number] == row.loss_before[number]:
                after[position] = before[position]
    measured = []
    for position, number in enumerate(numbers):
        tokens = examples[position]
        measured.append(
            TokenLosses(
                example_id=row.example_ids[number],
                tokens=token_texts(tokenizer, tokens.ids),
                before=_by_position(tokens, before[position]),
                after=_by_position(tokens, after[position]),
            )
        )
    return measured


def _examples_at(upstream: Iterable[UpstreamExample], numbers: Sequence[int]) -> list[Example]:
    """The examples with these numbers; a file of examples is read once, from its beginning."""
    positions = set(numbers)
    selected = {}
    for number, example in enumerate(upstream):
        if number in positions:
            selected[number] = example.example
    return [selected[number] for number in numbers]


def _by_position(tokens: Tokens, losses: np.ndarray) -> np.ndarray:
    """Losses (T,) of all tokens in float16, NaN for those that carry no loss."""
    values = np.full(len(tokens.ids), np.nan, dtype=np.float32)
    values[tokens.loss_mask] = losses
    return np.minimum(values, MOST_LOSS).astype(np.float16)
