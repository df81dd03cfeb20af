import pytest
from helpers import tiny

from lethe.data.token_texts import token_texts


@pytest.mark.parametrize(
    "text",
    [
        tiny.TEXT,
        " two  spaces and a tab\t",
        "Grüße, 🦜🦜 and 川の流れ",
        "\u202egnirts desrever\u202c",
        "<script>alert('x')</script>",
    ],
)
def test_the_texts_of_tokens_are_the_decoded_sequence(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_a_character_of_several_tokens_is_with_the_last_of_them(tokenizer):
    ids = tokenizer("a🦜b", add_special_tokens=False)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert [text for text in texts if text] == ["a", "🦜", "b"]


def test_a_sequence_that_ends_within_a_character_still_has_a_text_for_each_token(tokenizer):
    ids = tokenizer("a🦜", add_special_tokens=False)["input_ids"][:-1]
    assert len(token_texts(tokenizer, ids)) == len(ids)
    assert token_texts(tokenizer, []) == []
