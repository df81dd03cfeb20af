"""Words lie between spaces, and where there are no spaces every letter counts as one."""

import pytest

from lethe.data.examples import Example, chunks
from lethe.data.training_rows import split_text
from lethe.data.words import count_words, word_starts

CHINESE = "北京是中华人民共和国的首都，也是全国的政治中心。" * 4
JAPANESE = "ひらがなとカタカナと漢字で書かれた文章です。"
THAI = "กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("  \n", 0),
        ("Two  words.", 2),
        ("naïve Ελλάδα Привет 한국어 단어", 5),
        ("首都，", 2),
        ("用GPU训练model吧。", 6),
        (JAPANESE, 21),
        # Three of its characters are marks above and below the letters.
        (THAI, len(THAI) - 3),
    ],
)
def test_words_between_spaces_or_letters_without_spaces(text, words):
    assert count_words(text) == words


def test_a_name_in_another_script_is_one_word_of_its_text():
    """Texts of the default experiment hold some; its examples must stay what they were."""
    assert word_starts("Beijing (北京市) is old.") == [0, 8, 14, 17]


def test_a_text_without_spaces_is_cut_and_nothing_of_it_is_lost():
    pieces = [piece.text for piece in chunks([Example(text=CHINESE)], 22)]
    assert len(pieces) == 4
    assert "".join(pieces) == CHINESE
    assert all(piece.endswith("。") for piece in pieces)


def test_marks_stay_with_their_letter():
    starts = set(word_starts(THAI))
    marks = [position for position, letter in enumerate(THAI) if not letter.isalnum()]
    assert marks
    assert not starts & set(marks)


def test_a_text_without_spaces_has_a_question_and_an_answer():
    question, answer = split_text(CHINESE)
    assert question + answer == CHINESE
    assert count_words(question) == count_words(CHINESE) // 4
