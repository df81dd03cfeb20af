"""The text of each token of a sequence, for people to read."""

from collections.abc import Sequence
from typing import Any

# Tokens before a token that its text can depend on: a space or a part of a character.
_CONTEXT = 4
# The end of a text whose last character is not complete yet.
_INCOMPLETE = "\ufffd"


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Cuts a decoded sequence into the texts (T,) of its tokens.

    A token cannot be decoded by itself: spaces would get lost, and one character of several bytes
    can have several tokens. Each text is therefore the difference that its token makes to the
    tokens before it. If several tokens share a character, the last has its text and the others are
    empty.
    """
    texts: list[str] = []
    first = 0  # the context begins here
    shown = 0  # tokens before this one have their text
    for end in range(1, len(ids) + 1):
        before = _decode(tokenizer, ids[first:shown])
        text = _decode(tokenizer, ids[first:end])
        if text.endswith(_INCOMPLETE) and end - shown < _CONTEXT and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(before) :])
        shown = end
        first = max(0, end - _CONTEXT)
    return texts


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
