"""A model with everything that its measurements depend on: tokenizer and scoring settings."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from lethe.config.model_settings import Scoring
from lethe.data.examples import Example
from lethe.data.tokens import TokenFile, Tokenised, Tokens, lengths, tokenise
from lethe.engine import models
from lethe.engine.generation import generate
from lethe.engine.loading_report import check_length
from lethe.engine.scoring import Scores, fitting_budget, score, score_tokens


@dataclass(frozen=True)
class Reader:
    """A model that reads examples: it turns them into tokens, losses and answers.

    Attributes
    ----------
    scoring
        Settings of all measurements; `exact_match` is needed for answers only.
    """

    model: Any
    tokenizer: Any
    scoring: Scoring

    @classmethod
    def load(cls, card: dict[str, Any], scoring: Scoring, gpus: int = 0) -> Self:
        """Loads the model that a card describes (`models.load`)."""
        model, tokenizer = models.load(card, scoring.weights, gpus)
        return cls(model, tokenizer, scoring)

    def with_scoring(self, scoring: Scoring) -> Self:
        """The same model with other scoring settings, such as other batches."""
        return replace(self, scoring=scoring)

    def with_fitting_batches(self, examples: Sequence[Tokens]) -> Self:
        """The same model with batches as large as its device has memory for."""
        with models.autocast_for(self.model, self.scoring.dtype):
            budget = fitting_budget(self.model, examples, self.scoring.budget)
        return self.with_scoring(self.scoring.model_copy(update={"tokens_per_batch": budget}))

    def tokens(
        self,
        examples: Iterable[Example],
        *,
        max_tokens: int | None = None,
        truncation: str = "right",
        into: TokenFile | None = None,
        origins: Sequence[str] | None = None,
    ) -> Tokenised:
        """Examples as they are scored (`tokenise`).

        Parameters
        ----------
        max_tokens
            Longest sequence; None: `scoring.max_tokens`.
        into
            File that receives the tokens; None: a list.
        origins
            What errors call each example; None: its number.

        Raises
        ------
        LetheError
            If the chat template refuses an example, or the model has fewer positions than the
            longest example has tokens.
        """
        tokenised = tokenise(
            self.tokenizer,
            examples,
            max_tokens or self.scoring.max_tokens,
            truncation,
            include_eos=self.scoring.include_eos,
            into=into,
            origins=origins,
        )
        longest = int(lengths(tokenised.examples).max(initial=0))
        check_length(self.model, longest, "scoring.max_tokens and recipe.max_tokens")
        return tokenised

    def losses(
        self,
        examples: Sequence[Tokens],
        title: str,
        *,
        by_token: dict[int, np.ndarray] | None = None,
        partial: np.ndarray | None = None,
        after_batch: Callable[[np.ndarray], None] | None = None,
    ) -> Scores:
        """Mean loss of each example in nats per scored token (`score`)."""
        with models.autocast_for(self.model, self.scoring.dtype):
            return score(
                self.model,
                examples,
                self.scoring.budget,
                title,
                by_token=False if by_token is None else by_token,
                partial=partial,
                after_batch=after_batch,
            )

    def losses_of_tokens(self, examples: Sequence[Tokens], title: str) -> list[np.ndarray]:
        """Losses (S,) of the scored tokens of each example, in nats (`score_tokens`)."""
        with models.autocast_for(self.model, self.scoring.dtype):
            return score_tokens(self.model, examples, self.scoring.budget, title)

    def answers(
        self,
        prompts: Sequence[list[int]],
        title: str,
        *,
        partial: Sequence[str | None] | None = None,
        after_batch: Callable[[list[str | None]], None] | None = None,
    ) -> list[str]:
        """Greedy answers to prompts, which are token ids (`generate`).

        Raises
        ------
        LetheError
            If the model has too few positions for the longest prompt and its answer.
        """
        # The last token of an answer is not read any more.
        longest = max(map(len, prompts), default=0) + self.scoring.exact_match.max_new_tokens - 1
        check_length(
            self.model,
            longest,
            "the sum of scoring.max_tokens (for the own task: recipe.max_tokens) and "
            "scoring.exact_match.max_new_tokens",
        )
        with models.autocast_for(self.model, self.scoring.dtype):
            return generate(
                self.model,
                self.tokenizer,
                prompts,
                self.scoring.exact_match.max_new_tokens,
                self.scoring.budget,
                title,
                partial=partial,
                after_batch=after_batch,
            )
