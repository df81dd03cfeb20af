"""Examples as token sequences with the mask of tokens that carry loss."""

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np

from lethe.data.examples import Example

IN_MEMORY = 64_000_000  # bytes of tokens; a million of examples of 16 tokens


@dataclass(frozen=True)
class Tokens:
    """One tokenised example: `ids` and, from index `start` on, the tokens that carry loss."""

    ids: list[int]
    start: int

    @property
    def scored(self) -> int:
        """Number of tokens that carry loss."""
        return max(0, len(self.ids) - self.start)


class TokenFile(Sequence[Tokens]):
    """Tokenised examples of which only lengths are held in memory, 12 bytes each.

    The tokens lie in a temporary file without a name once they are more than IN_MEMORY bytes.
    """

    def __init__(self) -> None:
        # Its life is that of the object; a context would end it too early.
        self._file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        self._ends, self._starts = array("q", [0]), array("i")

    def append(self, tokens: Tokens) -> None:
        """Adds an example at the end."""
        self._file.seek(4 * self._ends[-1])
        self._file.write(np.asarray(tokens.ids, dtype=np.int32).tobytes())
        self._ends.append(self._ends[-1] + len(tokens.ids))
        self._starts.append(tokens.start)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        begin, end = self._ends[place], self._ends[place + 1]
        self._file.seek(4 * begin)
        ids = np.frombuffer(self._file.read(4 * (end - begin)), dtype=np.int32)
        return Tokens(ids.tolist(), self._starts[place])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example (N,)."""
        return np.diff(np.array(self._ends))

    @property
    def scored(self) -> np.ndarray:
        """Tokens of each example that carry loss (N,)."""
        return np.maximum(self.lengths - np.array(self._starts, dtype=np.int64), 0)


def lengths(examples: Sequence[Tokens]) -> np.ndarray:
    """Tokens of each example (N,)."""
    if isinstance(examples, TokenFile):
        return examples.lengths
    return np.array([len(example.ids) for example in examples], dtype=np.int64)


def scored(examples: Sequence[Tokens]) -> np.ndarray:
    """Tokens of each example that carry loss (N,)."""
    if isinstance(examples, TokenFile):
        return examples.scored
    return np.array([example.scored for example in examples], dtype=np.int64)


@dataclass(frozen=True)
class Tokenised:
    """Tokenised examples in order, with how many were cut and how many carry no loss."""

    examples: Sequence[Tokens]
    truncated: int
    empty: int


def tokenise(
    tokenizer: Any,
    examples: Iterable[Example],
    max_tokens: int,
    truncation: str = "left",
    include_eos: bool = True,
    into: "list[Tokens] | TokenFile | None" = None,
) -> Tokenised:
    r"""Turns examples into tokens.

    Loss is on the answer of a prompt-answer pair, and on all tokens but the first of plain text.
    A pair goes through the tokenizer's chat template where it has one; else it reads
    `<prompt>\\n<answer><end>`. Left truncation takes tokens off the prompt's beginning so that
    the answer stays; plain text is always cut at its end.

    Parameters
    ----------
    max_tokens
        Longest sequence; longer ones are cut and counted.
    include_eos
        Whether the end token of an answer is there (and carries loss).
    into
        Where the tokens go, a new list by default.
    """
    counts: Counter[str] = Counter()
    done = [] if into is None else into
    for example in examples:
        tokens = _encode(tokenizer, example, include_eos)
        if len(tokens.ids) > max_tokens:
            counts["truncated"] += 1
            tokens = _cut(tokens, max_tokens, truncation if example.text is None else "right")
        counts["empty"] += tokens.scored == 0
        done.append(tokens)
    return Tokenised(done, counts["truncated"], counts["empty"])


def prompt_text(tokenizer: Any, prompt: str) -> str:
    """The text that stands before the answer: chat template, else prompt and a line break."""
    if getattr(tokenizer, "chat_template", None):
        turn = [{"role": "user", "content": prompt}]
        return tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return f"{prompt.rstrip()}\n"


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens that an answer follows."""
    # A template writes the special tokens itself; a second set would shift every position.
    templated = bool(getattr(tokenizer, "chat_template", None))
    ids = tokenizer(prompt_text(tokenizer, prompt), add_special_tokens=not templated)["input_ids"]
    return _without_end(ids, tokenizer.eos_token_id, templated)


def _encode(tokenizer: Any, example: Example, include_eos: bool) -> Tokens:
    if example.text is not None:
        return Tokens(tokenizer(example.text)["input_ids"], 1)
    # Encoded apart, so that the mask falls exactly between prompt and answer.
    answer = tokenizer(example.answer.strip(), add_special_tokens=False)["input_ids"]
    if answer and include_eos and tokenizer.eos_token_id is not None:
        answer = [*answer, tokenizer.eos_token_id]
    ids = prompt_ids(tokenizer, example.prompt)
    # The first token of a sequence has nothing to be predicted from.
    return Tokens(ids + answer, max(1, len(ids)))


def _without_end(ids: list[int], eos: int | None, templated: bool) -> list[int]:
    """Some tokenizers end every text with EOS; a prompt that an answer follows must not."""
    return ids[:-1] if not templated and len(ids) > 1 and ids[-1] == eos else ids


def _cut(tokens: Tokens, max_tokens: int, side: str) -> Tokens:
    if side == "right":
        return Tokens(tokens.ids[:max_tokens], tokens.start)
    # At least one token of the prompt stays: the answer's first token is predicted from it.
    surplus = min(len(tokens.ids) - max_tokens, max(0, tokens.start - 1))
    return Tokens(tokens.ids[surplus:][:max_tokens], tokens.start - surplus)
