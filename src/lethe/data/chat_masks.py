"""A conversation of several turns as text, and the parts of it that carry loss.

Loss is on every assistant turn: its content, its thoughts and calls of tools as the template writes
them, and the end of the turn. The parts come from the template's own generation mask if it has one
(`{% generation %}`), and else from rendering the conversation as far as each turn.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lethe.data.chat import (
    PLACEHOLDER,
    WAY_OUT,
    Tools,
    Turns,
    render,
    render_next_turn,
    special_tokens,
)
from lethe.errors import LetheError

# A thinking block without thoughts, at the end of a text.
_EMPTY_THOUGHTS = re.compile(r"<(think|thinking|thought|reasoning)>\s*</\1>\s*$")
_GENERATION = re.compile(r"\{%-?\s*generation\b")


@dataclass(frozen=True)
class AnswerSpan:
    """Positions of one assistant turn in the text of a conversation.

    The answer is `text[begin:end]`. The end of the turn is `text[end:stop]`; it is empty if the
    template writes none.
    """

    begin: int
    end: int
    stop: int


@dataclass(frozen=True)
class RenderedChat:
    """The text of a conversation as far as the last assistant turn, and its assistant turns.

    Attributes
    ----------
    unended
        Whether the template writes nothing after the last assistant turn that ends it.
    """

    text: str
    spans: list[AnswerSpan]
    unended: bool


def has_generation_mask(tokenizer: Any) -> bool:
    """Whether the tokenizer's template marks what the model generates, and it can be read."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    return bool(getattr(tokenizer, "is_fast", False) and _GENERATION.search(template))


def render_chat(tokenizer: Any, turns: Turns, tools: Tools = None) -> RenderedChat:
    """Renders a conversation and finds its assistant turns.

    Parameters
    ----------
    turns
        All turns. Those after the last assistant turn are left out.

    Raises
    ------
    LetheError
        If there is no assistant turn, the template refuses the conversation, or an assistant turn
        cannot be found in its text.
    """
    numbers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not numbers:
        raise LetheError("a conversation has no assistant turn, so it has nothing to learn")
    turns = turns[: numbers[-1] + 1]
    text = render(tokenizer, turns, tools)
    tail = render_next_turn(tokenizer, turns[:-1], tools).tail
    ending = _end_of(tail, _special_texts(tokenizer))
    if has_generation_mask(tokenizer):
        spans = _generated_spans(tokenizer, turns, tools, text=text, ending=ending)
    else:
        finder = _SpanFinder(tokenizer, turns, tools, text=text, tail=tail, ending=ending)
        spans = [finder.span(number) for number in numbers]
    return RenderedChat(text[: spans[-1].stop], spans, unended=not ending)


def _special_texts(tokenizer: Any) -> list[str]:
    """Texts of the special tokens, the longest first."""
    texts = {
        str(text) for text in tokenizer.convert_ids_to_tokens(sorted(special_tokens(tokenizer)))
    }
    return sorted(texts, key=lambda text: (-len(text), text))


def _end_of(tail: str, special: Sequence[str]) -> str:
    """The part of the text after an answer that ends the turn: up to the first special token.

    Text without a special token is an end by itself.
    """
    first = None
    for text in special:
        position = tail.find(text)
        if position >= 0 and (first is None or position < first[0]):
            first = (position, text)
    if first is None:
        return tail.rstrip()
    return tail[: first[0] + len(first[1])]


class _SpanFinder:
    """Finds assistant turns by rendering the conversation as far as each of them."""

    def __init__(
        self, tokenizer: Any, turns: Turns, tools: Tools, *, text: str, tail: str, ending: str
    ):
        self.tokenizer = tokenizer
        self.turns = turns
        self.tools = tools
        self.text = text
        self.tail = tail
        self.ending = ending
        self.special = _special_texts(tokenizer)

    def span(self, number: int) -> AnswerSpan:
        """The positions of the assistant turn with this number."""
        before, after = self._around(number)
        begin = self._begin(number, before)
        end = self._end(number, begin, after)
        if begin is None or end is None or end < begin:
            raise LetheError(
                f"turn {number + 1} of a conversation cannot be found in the text that the chat "
                "template writes, so the loss cannot be put on it; use a template that marks the "
                f"assistant's turns with {{% generation %}}: {WAY_OUT}"
            )
        following = self.text[end:]
        if following.startswith(self.ending):
            return AnswerSpan(begin, end, end + len(self.ending))
        # The end of an earlier turn may differ from that of the last one.
        ending = _end_of(following, self.special)
        return AnswerSpan(begin, end, end + (len(ending) if self.ending else 0))

    def _around(self, number: int) -> tuple[str | None, str | None]:
        """The text before and after the turn if its content is a placeholder."""
        answer = {"role": "assistant", "content": PLACEHOLDER}
        turns = [*self.turns[:number], answer, *self.turns[number + 1 :]]
        try:
            before, separator, after = render(self.tokenizer, turns, self.tools).rpartition(
                PLACEHOLDER
            )
        except LetheError:
            # The next turn may be the reply to a call of a tool, which the placeholder is not.
            return None, None
        return (before, after) if separator else (None, None)

    def _begin(self, number: int, before: str | None) -> int | None:
        opening = render(
            self.tokenizer, self.turns[:number], self.tools, add_generation_prompt=True
        )
        # A conversation that begins with an answer has no text before it to look for.
        is_opened = bool(opening) and self.text.startswith(opening)
        if before is not None and self.text.startswith(before):
            if is_opened and before.startswith(opening) and not before[len(opening) :].strip():
                return len(opening)
            return len(before.rstrip(" "))
        if is_opened:
            return len(opening)
        if before is not None:
            header = _EMPTY_THOUGHTS.sub("", before)
            if self.text.startswith(header):
                return len(header)
        return None

    def _end(self, number: int, begin: int | None, after: str | None) -> int | None:
        closed = render(self.tokenizer, self.turns[: number + 1], self.tools)
        if self.text.startswith(closed) and closed.endswith(self.tail):
            return len(closed) - len(self.tail)
        if after is not None and self.text.endswith(after):
            return len(self.text) - len(after)
        return None


def _generated_spans(
    tokenizer: Any, turns: Turns, tools: Tools, *, text: str, ending: str
) -> list[AnswerSpan]:
    """The spans that the template itself marks as generated."""
    encoded = tokenizer.apply_chat_template(
        list(turns),
        tools=tools or None,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    # Encoded again, because the template's own call keeps no positions.
    plain = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = plain["offset_mapping"]
    special = _special_texts(tokenizer)
    mask = [*encoded["assistant_masks"], 0]
    spans = []
    first = None
    for position, marked in enumerate(mask):
        if marked and first is None:
            first = position
        elif not marked and first is not None:
            begin = offsets[first][0]
            stop = offsets[position - 1][1]
            end = _content_end(text, begin, stop, ending=ending, special=special)
            spans.append(AnswerSpan(begin, end, stop))
            first = None
    if not spans:
        raise LetheError(
            "the chat template marks no part of a conversation as generated by the model; use a "
            "template that marks assistant turns, or one without {% generation %}: " + WAY_OUT
        )
    return spans


def _content_end(text: str, begin: int, stop: int, *, ending: str, special: Sequence[str]) -> int:
    """The position where the end of the turn begins in a marked part."""
    marked = text[begin:stop]
    position = marked.rfind(ending) if ending else -1
    if position >= 0 and not _without(marked[position + len(ending) :], special).strip():
        return begin + position
    # The end of an earlier turn may differ from that of the last one.
    for token in special:
        if marked.rstrip().endswith(token):
            return begin + len(marked.rstrip()) - len(token)
    return stop


def _without(text: str, special: Sequence[str]) -> str:
    for token in special:
        text = text.replace(token, "")
    return text
