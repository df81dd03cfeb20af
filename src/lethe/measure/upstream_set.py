"""Upstream examples as one model reads them, and their measurement."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from lethe.data.examples import UpstreamExample, ids_of
from lethe.data.tokens import TokenFile, Tokenised, Tokens, scored
from lethe.engine import models
from lethe.engine.checkpoints import Checkpoint
from lethe.engine.reader import Reader
from lethe.engine.scoring import Scores
from lethe.matrix import rows
from lethe.measure.exact_match import Questions


@dataclass(frozen=True)
class UpstreamSet:
    """Tokens of upstream examples; `questions` where exact match is measured."""

    tokens: Tokenised
    questions: Questions | None

    @classmethod
    def of(cls, reader: Reader, upstream: Sequence[UpstreamExample]) -> Self:
        """Upstream examples, tokenised as they are scored."""
        questions = None
        if reader.scoring.exact_match is not None:
            examples = [example.example for example in upstream]
            questions = Questions.of(reader.tokenizer, examples, reader.scoring)
        return cls(upstream_tokens(reader, upstream), questions)

    def losses(
        self,
        reader: Reader,
        title: str,
        checkpoint: Checkpoint,
        by_token: dict[int, np.ndarray] | None = None,
    ) -> Scores:
        """Losses of all examples; those that an interrupted run measured are not measured again.

        Parameters
        ----------
        by_token
            Receives the losses of the examples' single tokens, by row, and those that an
            interrupted run measured.
        """
        saved = checkpoint.load("scores")
        partial = None
        if saved is not None:
            tensors, _ = saved
            # Without the tokens' losses, the examples have to be measured again.
            if by_token is None or "tokens" in tensors:
                partial = tensors["losses"].numpy()
            if by_token is not None and "tokens" in tensors:
                by_token.update(_by_row(tensors["rows"], tensors["tokens"], self.tokens.examples))

        def progress(losses: np.ndarray) -> dict[str, torch.Tensor]:
            tensors = {"losses": torch.from_numpy(losses)}
            return tensors if by_token is None else tensors | _by_token_tensors(by_token)

        def after_batch(losses: np.ndarray) -> None:
            if checkpoint.due():
                checkpoint.save("scores", progress(losses))
                count = int(np.isfinite(losses).sum())
                checkpoint.leave_if_asked(f"{title}, {count} of {len(losses)} examples")

        scores = reader.losses(
            self.tokens.examples,
            title,
            by_token=by_token,
            partial=partial,
            after_batch=after_batch,
        )
        checkpoint.remember("scores", progress(scores.losses))
        return scores

    def base_answers(
        self, reader: Reader, title: str, checkpoint: Checkpoint
    ) -> rows.Answers | None:
        """The answers of the untouched model; None where exact match is not measured."""
        if self.questions is None:
            return None
        return self.questions.base(reader, title, checkpoint)

    def answers(
        self, reader: Reader, base: rows.Answers | None, title: str, checkpoint: Checkpoint
    ) -> rows.Answers | None:
        """Answers of a fine-tuned model to the questions that the base model answered right.

        None where exact match is not measured.
        """
        if self.questions is None or base is None:
            return None
        selected = base.exact_match_before == 1
        answers = self.questions.ask(reader, selected, title, checkpoint=checkpoint)
        return self.questions.after(base, answers)

    def counts(self, scores: Scores) -> dict[str, Any]:
        """Numbers of truncated, empty and missing examples, and the speed of the scoring."""
        return {
            "truncated": self.tokens.truncated,
            "empty": self.tokens.empty,
            "missing": int(np.isnan(scores.losses).sum()),
            "scoring_seconds": scores.seconds,
            "scoring_tokens_per_second": scores.tokens_per_second,
            "peak_memory_mb": models.peak_memory_mb(),
        }


def upstream_tokens(reader: Reader, upstream: Sequence[UpstreamExample]) -> Tokenised:
    """Upstream examples as they are scored, in a file once they are many."""
    examples = (example.example for example in upstream)
    return reader.tokens(examples, into=TokenFile(), origins=ids_of(upstream))


def _by_token_tensors(by_token: dict[int, np.ndarray]) -> dict[str, torch.Tensor]:
    """Rows, and the losses of their tokens one row after the other."""
    values = [torch.from_numpy(values) for values in by_token.values()]
    empty = torch.zeros(0, dtype=torch.float32)
    return {
        "rows": torch.tensor(list(by_token), dtype=torch.int64),
        "tokens": torch.cat([empty, *values]),
    }


def _by_row(
    numbers: torch.Tensor, values: torch.Tensor, examples: Sequence[Tokens]
) -> dict[int, np.ndarray]:
    counts = scored(examples)
    by_token = {}
    first = 0
    for row in numbers.tolist():
        by_token[row] = values[first : first + counts[row]].numpy()
        first += counts[row]
    return by_token
