"""Examples as token sequences, and the tokens of each that carry loss."""

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np

from lethe.data.chat import WAY_OUT, end_of_turn, has_template, render_next_turn, render_turn
from lethe.data.chat_masks import render_chat
from lethe.data.examples import Example
from lethe.errors import LetheError

# Bytes of tokens that stay in memory: a million examples of 16 tokens.
IN_MEMORY = 64_000_000


@dataclass(frozen=True)
class Tokens:
    """One tokenised example. The tokens `ids[start:]` carry loss, but for the gaps.

    Attributes
    ----------
    gaps
        First token and end of each part after `start` that carries no loss, such as the user's
        later turns in a conversation.
    weight
        As how many examples a replayed one counts.
    """

    ids: list[int]
    start: int
    gaps: tuple[tuple[int, int], ...] = ()
    weight: float = 1.0

    @property
    def scored(self) -> int:
        """Number of tokens that carry loss."""
        return max(0, len(self.ids) - self.start) - _gap_tokens(self.gaps)

    @property
    def loss_mask(self) -> np.ndarray:
        """True (T,) for every token that carries loss."""
        mask = np.arange(len(self.ids)) >= self.start
        for begin, end in self.gaps:
            mask[begin:end] = False
        return mask


def _gap_tokens(gaps: Iterable[tuple[int, int]]) -> int:
    return sum(end - begin for begin, end in gaps)


class TokenFile(Sequence[Tokens]):
    """Tokenised examples whose tokens are on disk; 12 bytes per example stay in memory.

    It is for upstream examples and those of tasks, which all have weight 1.

    The tokens are in a temporary file without a name as soon as they take more than IN_MEMORY
    bytes.
    """

    def __init__(self) -> None:
        # The file lives as long as this object; a context would close it too early.
        self._file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        self._ends = array("q", [0])
        self._starts = array("i")
        # Few examples have gaps: conversations of several turns.
        self._gaps: dict[int, tuple[tuple[int, int], ...]] = {}

    def append(self, tokens: Tokens) -> None:
        """Adds an example at the end."""
        self._file.seek(4 * self._ends[-1])
        self._file.write(np.asarray(tokens.ids, dtype=np.int32).tobytes())
        self._ends.append(self._ends[-1] + len(tokens.ids))
        if tokens.gaps:
            self._gaps[len(self._starts)] = tokens.gaps
        self._starts.append(tokens.start)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        begin = self._ends[index]
        length = self._ends[index + 1] - begin
        self._file.seek(4 * begin)
        ids = np.frombuffer(self._file.read(4 * length), dtype=np.int32)
        return Tokens(ids.tolist(), self._starts[index], self._gaps.get(index, ()))

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example (N,)."""
        return np.diff(np.array(self._ends))

    @property
    def scored(self) -> np.ndarray:
        """Tokens of each example that carry loss (N,)."""
        counts = np.maximum(self.lengths - np.array(self._starts, dtype=np.int64), 0)
        for index, gaps in self._gaps.items():
            counts[index] -= _gap_tokens(gaps)
        return counts


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
    """Tokenised examples in order, and the numbers of those that were cut or carry no loss."""

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
    origins: Sequence[str] | None = None,
) -> Tokenised:
    r"""Turns examples into tokens.

    Loss is on the answer of a prompt-answer pair, on every assistant turn of a conversation, and on
    all tokens of plain text but the first.
    A pair is written by the tokenizer's chat template if it has one, and else as
    `<prompt>\\n<answer><end>`. Left truncation removes tokens at the beginning of the prompt, so
    that the answer stays. Plain text is always cut at its end, and no end token is scored after
    it, because most texts are pieces of longer ones.

    Parameters
    ----------
    max_tokens
        Tokens of the longest sequence; longer ones are cut and counted.
    truncation
        Side on which pairs are cut: `left` or `right`.
    include_eos
        Whether the end of an answer is there and carries loss.
    into
        Where the tokens are appended; a new list by default.
    origins
        What errors call each example, such as `a.jsonl, line 3`; its number by default.

    Raises
    ------
    LetheError
        If the chat template refuses a conversation, with the origin of the example.
    """
    encoder = _Encoder(tokenizer)
    counts: Counter[str] = Counter()
    sequences = [] if into is None else into
    for number, example in enumerate(examples):
        try:
            tokens = encoder.example(example, include_eos)
        except LetheError as error:
            origin = f"example {number + 1}" if origins is None else origins[number]
            beginning = (example.prompt or example.answer or "")[:60]
            raise LetheError(f"{error} ({origin}: {beginning!r})")
        side = truncation if example.text is None else "right"
        if len(tokens.ids) > max_tokens:
            counts["truncated"] += 1
            tokens = _cut(tokens, max_tokens, side)
        counts["empty"] += tokens.scored == 0
        sequences.append(tokens)
    return Tokenised(sequences, counts["truncated"], counts["empty"])


def prompt_text(tokenizer: Any, prompt: str) -> str:
    """The text before an answer: by the chat template, or the prompt and a line break."""
    if has_template(tokenizer):
        return render_turn(tokenizer, prompt).prompt
    return f"{prompt.rstrip()}\n"


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The tokens that an answer follows."""
    return _Encoder(tokenizer).prompt(prompt)


def question_ids(tokenizer: Any, example: Example) -> list[int]:
    """The tokens that the answer of a pair, or the last answer of a conversation, follows."""
    return _Encoder(tokenizer).question(example)


class _Encoder:
    """A tokenizer, and facts about it that are the same for every example."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        # Tokens of the end of a turn, by the text that the template writes after an answer.
        self._ends: dict[str, list[int]] = {}
        self.templated = has_template(tokenizer)
        self.appended = _appended_tokens(tokenizer)

    def example(self, example: Example, include_eos: bool) -> Tokens:
        """Plain text, a conversation, or a pair."""
        if example.text is not None:
            return self.text(example.text)
        if example.chat is not None:
            return self.chat(example, include_eos)
        return self.pair(example.prompt, example.answer, include_eos)

    def text(self, text: str) -> Tokens:
        """Plain text with the tokens that the tokenizer puts first, but not those it puts last."""
        return Tokens(self._with_first_tokens(text), 1)

    def prompt(self, prompt: str) -> list[int]:
        """The prompt with everything that stands before the answer."""
        text = prompt_text(self.tokenizer, prompt)
        # A template writes special tokens itself; a second set would shift every position.
        return self._plain(text) if self.templated else self._with_first_tokens(text)

    def question(self, example: Example) -> list[int]:
        """The tokens before the last answer of an example."""
        if example.chat is None or not self.templated:
            return self.prompt(example.prompt or "")
        turns, tools = example.conversation()
        last = max(number for number, turn in enumerate(turns) if turn["role"] == "assistant")
        return self._plain(render_next_turn(self.tokenizer, turns[:last], tools).prompt)

    def chat(self, example: Example, include_eos: bool) -> Tokens:
        """A conversation, with loss on every assistant turn and, if wanted, on its end."""
        if not self.templated:
            raise LetheError(
                "a conversation of several turns needs a chat template, and the model has none; "
                f"{WAY_OUT}, or give pairs of prompt and answer"
            )
        rendered = render_chat(self.tokenizer, *example.conversation())
        parts = []
        for span in rendered.spans:
            parts.append((span.begin, span.stop if include_eos else span.end))
        text = rendered.text if include_eos else rendered.text[: parts[-1][1]]
        ids, mask = self._marked(text, parts)
        eos = self.tokenizer.eos_token_id
        if include_eos and rendered.unended and eos is not None:
            ids.append(eos)
            mask.append(True)
        mask[0] = False
        return Tokens(ids, *_start_and_gaps(mask))

    def _marked(self, text: str, parts: list[tuple[int, int]]) -> tuple[list[int], list[bool]]:
        """The tokens of a text, and for each whether it reaches into one of the parts."""
        if not getattr(self.tokenizer, "is_fast", False):
            ids: list[int] = []
            mask: list[bool] = []
            position = 0
            for begin, end in parts:
                for piece, marked in ((text[position:begin], False), (text[begin:end], True)):
                    piece_ids = self._plain(piece)
                    ids += piece_ids
                    mask += [marked] * len(piece_ids)
                position = end
            return ids, mask
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        mask = [False] * len(encoded["input_ids"])
        number = 0
        for index, (first, last) in enumerate(encoded["offset_mapping"]):
            while number < len(parts) and parts[number][1] <= first:
                number += 1
            mask[index] = number < len(parts) and last > parts[number][0]
        return encoded["input_ids"], mask

    def pair(self, prompt: str, answer: str, include_eos: bool) -> Tokens:
        """Prompt and answer, with loss on the answer and, if wanted, on its end."""
        answer = answer.strip()
        if self.templated:
            turn = render_turn(self.tokenizer, prompt)
            ids = self._plain(turn.prompt)
            answer_ids = self._after(ids, turn.prompt, turn.lead + answer) if answer else []
            if turn.tail not in self._ends:
                self._ends[turn.tail] = end_of_turn(self.tokenizer, turn.tail)
            end = self._ends[turn.tail]
        else:
            ids = self.prompt(prompt)
            # Encoded separately, so that loss begins exactly between prompt and answer.
            answer_ids = self._plain(answer)
            eos = self.tokenizer.eos_token_id
            end = [] if eos is None else [eos]
        if answer_ids and include_eos:
            answer_ids = [*answer_ids, *end]
        # Nothing comes before the first token of a sequence, so that it cannot be predicted.
        return Tokens(ids + answer_ids, max(1, len(ids)))

    def _after(self, prompt_ids: list[int], prompt: str, answer: str) -> list[int]:
        """The tokens of an answer as they are in the rendered conversation.

        Some tokenizers encode a text differently at its beginning (SentencePiece puts a space
        there). If prompt and answer share a token, they are encoded separately instead.
        """
        ids = self._plain(prompt + answer)
        if ids[: len(prompt_ids)] == prompt_ids and len(ids) > len(prompt_ids):
            return ids[len(prompt_ids) :]
        return self._plain(answer)

    def _plain(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _with_first_tokens(self, text: str) -> list[int]:
        ids = self.tokenizer(text)["input_ids"]
        return ids[: len(ids) - self.appended]


def _start_and_gaps(mask: Sequence[bool]) -> tuple[int, tuple[tuple[int, int], ...]]:
    """The first token that carries loss, and the gaps after it."""
    start = mask.index(True) if True in mask else len(mask)
    gaps = []
    begin = None
    for position in range(start, len(mask)):
        if not mask[position] and begin is None:
            begin = position
        elif mask[position] and begin is not None:
            gaps.append((begin, position))
            begin = None
    if begin is not None:
        gaps.append((begin, len(mask)))
    return start, tuple(gaps)


def _appended_tokens(tokenizer: Any) -> int:
    """Number of special tokens that the tokenizer appends to a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a")["input_ids"]
    if not plain:
        # The letter has no token, so that first and last tokens look alike.
        return int(len(ids) > 1 and ids[-1] == tokenizer.eos_token_id)
    for first in range(len(ids) - len(plain) + 1):
        if ids[first : first + len(plain)] == plain:
            return len(ids) - first - len(plain)
    return 0


def _cut(tokens: Tokens, max_tokens: int, side: str) -> Tokens:
    surplus = 0
    if side == "left":
        # At least one token of the prompt stays, because the answer's first token is predicted
        # from it.
        surplus = min(len(tokens.ids) - max_tokens, max(0, tokens.start - 1))
    gaps = []
    for begin, end in tokens.gaps:
        first = begin - surplus
        if first < max_tokens:
            gaps.append((first, min(end - surplus, max_tokens)))
    return Tokens(tokens.ids[surplus:][:max_tokens], tokens.start - surplus, tuple(gaps))
