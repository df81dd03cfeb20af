"""The words of a text, also where no spaces stand between them."""

import re

# Letters of scripts that put no space between words: Thai and Lao, Burmese, Khmer, and the Chinese
# and Japanese ones.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_LETTER = re.compile(f"[{_UNSPACED}]")
_BETWEEN_SPACES = re.compile(r"\S+")
# One such letter with the marks and the punctuation that follow it, or a word of another script.
_LETTER_OR_WORD = re.compile(rf"[{_UNSPACED}][^\w\s]*|[^{_UNSPACED}\s]+")


def word_starts(text: str) -> list[int]:
    """Positions of the first characters of words.

    Words lie between spaces. If a text has more letters of scripts without spaces, such as Chinese,
    than words between spaces, each such letter counts as a word, too.
    """
    starts = [match.start() for match in _BETWEEN_SPACES.finditer(text)]
    if len(_LETTER.findall(text)) > len(starts):
        starts = [match.start() for match in _LETTER_OR_WORD.finditer(text)]
    return starts


def count_words(text: str) -> int:
    """The number of words, as `word_starts` finds them."""
    return len(word_starts(text))
