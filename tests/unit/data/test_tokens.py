import pytest
from helpers import tiny

from lethe.data import tokens
from lethe.data.examples import Example
from lethe.data.tokens import Tokens, prompt_text, tokenise

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PAIR = Example("How many sacks fit in the boat?", " Seven ")
END = 0


@pytest.fixture
def chat(tokenizer):
    """The tokenizer with a chat template and, like Llama's, a first token of its own."""
    from tokenizers.processors import TemplateProcessing

    own = tiny.tokenizer()
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", END)]
    )
    own.chat_template = TEMPLATE
    return own


@pytest.fixture
def ending(tokenizer):
    """A tokenizer that ends every text with its end token, as some do."""
    from tokenizers.processors import TemplateProcessing

    own = tiny.tokenizer()
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", END)]
    )
    return own


def one(tokenizer, example, max_tokens=100, **options) -> Tokens:
    (result,) = tokenise(tokenizer, [example], max_tokens, **options).examples
    return result


def test_loss_of_a_pair_is_on_the_answer_and_its_end(tokenizer):
    result = one(tokenizer, PAIR)
    assert tokenizer.decode(result.ids[: result.start]) == "How many sacks fit in the boat?\n"
    assert tokenizer.decode(result.ids[result.start :]) == "Seven<|endoftext|>"
    assert result.scored == len(result.ids) - result.start


def test_the_end_token_is_left_out_where_it_is_not_wanted(tokenizer):
    result = one(tokenizer, PAIR, include_eos=False)
    assert tokenizer.decode(result.ids[result.start :]) == "Seven"


def test_loss_of_plain_text_is_on_all_tokens_but_the_first(tokenizer):
    result = one(tokenizer, Example(text="Seven, says he"))
    assert (result.ids, result.start) == (tokenizer("Seven, says he")["input_ids"], 1)


def test_a_chat_template_is_used_where_there_is_one(chat):
    assert prompt_text(chat, "Hello") == "<|endoftext|><|user|>\nHello\n<|assistant|>\n"
    result = one(chat, PAIR)
    text = chat.decode(result.ids[: result.start])
    assert text == "<|endoftext|><|user|>\nHow many sacks fit in the boat?\n<|assistant|>\n"
    assert chat.decode(result.ids[result.start :]) == "Seven<|endoftext|>"


def test_a_chat_template_does_not_double_the_special_tokens(chat):
    result = one(chat, PAIR)
    assert result.ids[: result.start].count(END) == 1
    # Plain text does not go through the template and keeps the first token of the tokenizer.
    assert one(chat, Example(text="Seven")).ids[0] == END


def test_the_end_token_some_tokenizers_add_does_not_part_prompt_and_answer(ending):
    result = one(ending, PAIR)
    assert END not in result.ids[: result.start]
    assert result.ids.count(END) == 1
    assert result.ids[-1] == END


@pytest.mark.parametrize("last", ["<|endoftext|>", "<|endoftext|> <|endoftext|>"])
@pytest.mark.parametrize("first", ["", "<|endoftext|> "])
def test_no_end_token_is_scored_after_plain_text_whatever_the_tokenizer_appends(first, last):
    from tokenizers.processors import TemplateProcessing

    own = tiny.tokenizer()
    plain = own("Seven sacks stand by the")["input_ids"]
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first}$A {last}", special_tokens=[("<|endoftext|>", END)]
    )
    before = [END] if first else []
    for include_eos in (True, False):
        result = one(own, Example(text="Seven sacks stand by the"), include_eos=include_eos)
        assert (result.ids, result.start) == (before + plain, 1)
    # An end token that stands in the text itself stays.
    assert one(own, Example(text="Seven<|endoftext|>")).ids[-1] == END
    assert one(own, Example(text="")).scored == 0
    pair = one(own, PAIR)
    assert pair.ids[pair.start - 1] != END and pair.ids.count(END) == len(before) + 1


def test_an_answer_is_encoded_as_in_the_conversation_also_by_sentencepiece():
    """Its tokenizers put a space before every text, so that a separate answer would get one."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "</s>", "[I]", "▁", "▁Hello", "▁Seven", "Seven", "▁▁", "Hello"]
    vocabulary = [(piece, -1.0 if len(piece) > 2 else -5.0) for piece in pieces]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Metaspace()
    own = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", additional_special_tokens=["[I]"]
    )
    own.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '[I]' + m.content + '[I]' }}"
        "{% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}"
    )
    result = one(own, Example("Hello", "Seven"))
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Seven"}]
    text = own.apply_chat_template(turns, tokenize=False)
    assert result.ids == own(text, add_special_tokens=False)["input_ids"]


def test_after_an_empty_prompt_the_whole_answer_is_scored(tokenizer):
    result = one(tokenizer, Example("", "Seven"))
    assert tokenizer.decode(result.ids[: result.start]) == "\n"
    assert tokenizer.decode(result.ids[result.start :]) == "Seven<|endoftext|>"


def test_left_truncation_keeps_the_answer_and_counts(tokenizer):
    long = Example("sacks " * 50 + "boat?", "Seven")
    done = tokenise(tokenizer, [long, PAIR], 30)
    (result, other) = done.examples
    assert len(result.ids) == 30
    assert tokenizer.decode(result.ids[result.start :]) == "Seven<|endoftext|>"
    assert tokenizer.decode(result.ids[: result.start]).endswith("sacks boat?\n")
    assert other == one(tokenizer, PAIR)
    assert (done.truncated, done.empty) == (1, 0)


def test_left_truncation_keeps_one_token_before_an_answer_that_is_too_long(tokenizer):
    answer = "Seven, says he, and one more if you stay ashore."
    result = one(tokenizer, Example("How many sacks?", answer), 6)
    whole = one(tokenizer, Example("How many sacks?", answer))
    assert result.start == 1
    assert result.ids == whole.ids[whole.start - 1 :][:6]
    assert result.scored == 5


def test_right_truncation_keeps_the_beginning_and_counts_lost_answers(tokenizer):
    done = tokenise(tokenizer, [PAIR], 5, "right")
    (result,) = done.examples
    assert result.ids == one(tokenizer, PAIR).ids[:5]
    assert result.scored == 0
    assert (done.truncated, done.empty) == (1, 1)


def test_plain_text_is_cut_at_its_end_whatever_the_side(tokenizer):
    text = Example(text=tiny.TEXT)
    assert one(tokenizer, text, 9, truncation="left").ids == one(tokenizer, text).ids[:9]


@pytest.mark.parametrize("answer", ["", "   ", "\n"])
def test_empty_answers_carry_no_loss_and_are_counted(tokenizer, answer):
    done = tokenise(tokenizer, [Example("Say nothing:", answer), PAIR], 100)
    assert [example.scored > 0 for example in done.examples] == [False, True]
    assert done.empty == 1


def test_empty_text_and_text_of_one_token_carry_no_loss(tokenizer):
    done = tokenise(tokenizer, [Example(text=""), Example(text="a")], 100)
    assert done.empty == 2


def test_tokens_in_a_file_are_those_in_a_list(monkeypatch):
    monkeypatch.setattr(tokens, "IN_MEMORY", 40)
    shapes = [(3, 1), (0, 1), (70_000, 2), (5, 5), (2, 1)]
    expected = [tokens.Tokens(list(range(length)), start) for length, start in shapes]
    kept = tokens.TokenFile()
    for one in expected:
        kept.append(one)
    assert list(kept) == expected
    assert (kept[-1], kept[1:3]) == (expected[-1], expected[1:3])
    for of in (tokens.lengths, tokens.scored):
        assert of(kept).tolist() == of(expected).tolist()
    assert tokens.scored(kept).tolist() == [2, 0, 69_998, 0, 1]
    with pytest.raises(IndexError):
        kept[5]
