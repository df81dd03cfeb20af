"""The replayed examples of each step of somebody else's trainer."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lethe.data.examples import (
    read_upstream,
    upstream_digest,
    without_copies_of_heldout,
)
from lethe.data.tokens import Tokens, tokenise
from lethe.errors import LetheError

logger = logging.getLogger(__name__)


class ReplayBatches:
    """Tokenised replay examples, and those of every step.

    A step's examples depend on the seed and the number of the step only, so a training that
    resumes replays what it would have replayed. Each pass over the examples has a random order of
    its own.

    Parameters
    ----------
    examples
        Tokenised examples, each with a token that carries loss.
    per_step
        Examples per optimizer step.
    digest
        SHA-256 of the examples' ids, splits and texts.
    """

    def __init__(self, examples: Sequence[Tokens], *, per_step: int, seed: int, digest: str):
        self.examples = examples
        self.per_step = per_step
        self.seed = seed
        self.digest = digest
        # Order of the pass that was read last.
        self._pass = -1
        self._order = np.arange(0)

    @classmethod
    def read(
        cls, path: Path | str, tokenizer: Any, *, max_tokens: int, per_step: int, seed: int
    ) -> "ReplayBatches":
        """Reads a table of examples: a pool, or a selection of one.

        Held-out examples and copies of them are left out, because they must never be replayed. So
        are examples without a token that carries loss. The latter are counted in a warning, as are
        examples that are cut to `max_tokens`.

        Raises
        ------
        LetheError
            If there is no such file, it is no table of upstream examples, or no example can be
            replayed.
        """
        path = Path(path)
        if not path.is_file():
            raise LetheError(
                f"Rehearsal: {path}: no such file; give a table of replay examples, such as the "
                "pool.parquet that `lethe pool` writes"
            )
        upstream = list(read_upstream(path))
        usable = without_copies_of_heldout(upstream)
        replayable = [example for example in usable if example.split != "heldout"]
        if len(replayable) < len(upstream):
            logger.info(
                "Rehearsal: %d of %d examples of %s are held out, or copies of those, and never "
                "replayed",
                len(upstream) - len(replayable),
                len(upstream),
                path,
            )
        tokenised = tokenise(
            tokenizer,
            (example.example for example in replayable),
            max_tokens=max_tokens,
            origins=[f"{path}, {example.example_id}" for example in replayable],
        )
        scored = [example for example in tokenised.examples if example.scored]
        if not scored:
            raise LetheError(
                f"Rehearsal: {path}: none of its {len(upstream)} examples can be replayed "
                f"({len(upstream) - len(replayable)} are held out or copies, {len(replayable)} "
                f"have no token that carries loss within {max_tokens} tokens); give another file "
                "or a larger max_tokens"
            )
        if tokenised.truncated or tokenised.empty:
            logger.warning(
                "Rehearsal: %s: of %d examples that may be replayed, %d are longer than "
                "max_tokens (%d) and are cut, and %d are left out, because none of their tokens "
                "carries loss",
                path,
                len(replayable),
                tokenised.truncated,
                max_tokens,
                tokenised.empty,
            )
        return cls(scored, per_step=per_step, seed=seed, digest=upstream_digest(replayable))

    def of_step(self, step: int) -> list[Tokens]:
        """The examples of a step, by its number from 0."""
        first = step * self.per_step
        return [self._at(position) for position in range(first, first + self.per_step)]

    def _at(self, position: int) -> Tokens:
        """The example at a position of the endless stream of passes."""
        number, place = divmod(position, len(self.examples))
        if self._pass != number:
            rng = np.random.default_rng([self.seed, number])
            self._order = rng.permutation(len(self.examples))
            self._pass = number
        return self.examples[self._order[place]]
