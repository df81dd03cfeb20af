"""Loss is on every assistant turn of a conversation, where trl's own templates put it."""

import re
from pathlib import Path

import numpy as np
import pytest
import trl
from helpers import tiny

from lethe.data import tokens as tokens_module
from lethe.data.chat_masks import has_generation_mask
from lethe.data.conversations import ChatReader
from lethe.data.examples import Example
from lethe.data.tokens import TokenFile, question_ids, scored, tokenise
from lethe.engine.batches import collate
from lethe.errors import LetheError

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
USER = [
    {"role": "user", "content": "How many sacks?"},
    {"role": "user", "content": "And if you stay?"},
]
CONVERSATION = [
    USER[0],
    {"role": "assistant", "content": "Seven."},
    USER[1],
    {"role": "assistant", "content": "One more, the eighth."},
]
SYSTEM = {"role": "system", "content": "Be short."}
CHAT = ChatReader()({"messages": [SYSTEM, *CONVERSATION]})
SPECIAL = re.compile(
    r"<\|[^|<>]+\|>|<(?:start|end)_of_turn>|</?s>|\[/?INST\]|<｜[^｜<>]+｜>|<\|turn>|<turn\|>"
)


def tokenizer_with(template: str):
    tokenizer = tiny.tokenizer()
    special = sorted(set(SPECIAL.findall(template)))
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.chat_template = template
    return tokenizer


def of_trl(name: str):
    return tokenizer_with((TEMPLATES / f"{name}.jinja").read_text("utf-8"))


def parts(tokenizer, example=CHAT, **options) -> list[str]:
    """The texts that carry loss."""
    (tokens,) = tokenise(tokenizer, [example], 2000, **options).examples
    texts = []
    previous = False
    for token, marked in zip(tokens.ids, tokens.loss_mask, strict=True):
        if marked:
            texts = [*texts[:-1], texts[-1] + [token]] if previous else [*texts, [token]]
        previous = marked
    return [tokenizer.decode(part) for part in texts]


@pytest.mark.parametrize(
    ("name", "end", "last"),
    [
        ("qwen2_5", "<|im_end|>", "<|im_end|>"),
        ("qwen3", "<|im_end|>", "<|im_end|>"),
        ("qwen3_6", "<|im_end|>", "<|im_end|>"),
        ("llama3", "<|eot_id|>", "<|eot_id|>"),
        ("gemma3", "<end_of_turn>", "<end_of_turn>"),
        ("phi3", "<|end|>", "<|end|>"),
        ("gptoss", "<|end|>", "<|return|>"),
        ("cohere", "<|END_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        ("deepseekv3", "<｜end▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        ("nemotron_3_nano", "<|im_end|>", "<|im_end|>"),
        # Its turns have no end; the tokenizer's end token is the last one's.
        ("glm4moe", "", "<|endoftext|>"),
    ],
)
def test_every_assistant_turn_carries_loss_up_to_its_end(name, end, last):
    tokenizer = of_trl(name)
    assert parts(tokenizer) == [f"Seven.{end}", f"One more, the eighth.{last}"]
    assert parts(tokenizer, include_eos=False) == ["Seven.", "One more, the eighth."]


def trl_mask(tokenizer, turns, **options):
    """Token ids and loss mask as trl's SFTTrainer makes them with assistant_only_loss."""
    encoded = tokenizer.apply_chat_template(
        turns,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        **options,
    )
    return encoded["input_ids"], np.array(encoded["assistant_masks"], dtype=bool)


TRAINING = [path.stem for path in sorted(TEMPLATES.glob("*_training.jinja"))]
# They read images, and their turns are lists of parts.
TRAINING = [name for name in TRAINING if not re.match("idefics|llava|smolvlm", name)]


@pytest.mark.parametrize("name", TRAINING)
def test_the_mask_is_the_templates_own_where_it_marks_what_is_generated(name):
    tokenizer = of_trl(name)
    assert has_generation_mask(tokenizer)
    example = ChatReader()({"messages": CONVERSATION})
    (tokens,) = tokenise(tokenizer, [example], 4000).examples
    ids, mask = trl_mask(tokenizer, CONVERSATION)
    length = len(tokens.ids)
    assert tokens.ids == ids[:length]
    assert np.array_equal(tokens.loss_mask, mask[:length])
    assert not mask[length:].any()
    for text in parts(tokenizer, example, include_eos=False):
        assert text.endswith(("Seven.", "One more, the eighth."))


# The others also mark a header or an empty thinking block.
EQUAL = ["cohere_training", "llama3_training", "gemma3_training", "qwen3_instruct_2507_training"]


@pytest.mark.parametrize("name", EQUAL)
def test_rendering_turn_by_turn_finds_the_same_mask_as_the_template(name):
    marked = of_trl(name)
    template = re.sub(r"generation\b", "if true", marked.chat_template)
    template = template.replace("endif true", "endif").replace("add_if true", "add_generation")
    plain = tokenizer_with(template)
    assert not has_generation_mask(plain)
    texts = [text.rstrip("\n") for text in parts(marked)]
    assert parts(plain) == texts


def test_thoughts_and_calls_of_tools_carry_loss_as_the_template_writes_them():
    call = {"type": "function", "function": {"name": "count", "arguments": {"of": "sacks"}}}
    turns = [
        USER[0],
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "Count."},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "Seven.", "reasoning_content": "It says 7."},
        USER[1],
        {"role": "assistant", "content": "Eight.", "reasoning_content": "One more."},
    ]
    tools = [{"type": "function", "function": {"name": "count", "description": "Counts."}}]
    tokenizer = of_trl("qwen3")
    example = ChatReader()({"messages": turns, "tools": tools})
    # Qwen3 drops the thoughts before the last question.
    assert parts(tokenizer, example) == [
        '<tool_call>\n{"name": "count", "arguments": {"of": "sacks"}}\n</tool_call><|im_end|>',
        "Seven.<|im_end|>",
        "<think>\nOne more.\n</think>\n\nEight.<|im_end|>",
    ]
    (tokens,) = tokenise(tokenizer, [example], 4000).examples
    text = tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)
    assert tokenizer.decode(tokens.ids) == text.rstrip("\n")
    marked = of_trl("qwen3_training")
    ids, mask = trl_mask(marked, turns, tools=tools)
    (tokens,) = tokenise(marked, [example], 4000).examples
    assert tokens.ids == ids and np.array_equal(tokens.loss_mask, mask)


def test_the_question_of_a_conversation_is_everything_before_the_last_answer():
    tokenizer = of_trl("qwen3")
    text = tokenizer.apply_chat_template(
        [SYSTEM, *CONVERSATION[:3]], tokenize=False, add_generation_prompt=True
    )
    question = tokenizer.decode(question_ids(tokenizer, CHAT))
    # The empty thinking block that comes before a finished answer is part of the question.
    assert question == f"{text}<think>\n\n</think>\n\n"


def test_a_tokenizer_without_positions_gives_the_same_mask():
    tokenizer = of_trl("llama3")
    fast = tokenise(tokenizer, [CHAT], 2000).examples[0]

    class Slow:
        is_fast = False

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, text, **options):
            assert "return_offsets_mapping" not in options
            return tokenizer(text, **options)

    slow = tokenise(Slow(), [CHAT], 2000).examples[0]
    assert slow == fast


def test_a_conversation_needs_a_template_and_a_turn_that_can_be_found():
    with pytest.raises(LetheError, match="needs a chat template, and the model has none"):
        tokenise(tiny.tokenizer(), [CHAT], 100)
    counting = "{{ messages | length }}{% for m in messages %}"
    counting += "{{ m.content | length }}: {{ m.content }}{% endfor %}"
    with pytest.raises(LetheError, match="turn 3 of a conversation cannot be found in the text"):
        tokenise(tokenizer_with(counting), [CHAT], 100)
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    with pytest.raises(LetheError, match="refused a conversation of the turns system, user"):
        tokenise(tokenizer_with(refuses), [CHAT], 100)


def test_tokens_with_gaps_are_the_same_from_memory_and_from_a_file(monkeypatch):
    tokenizer = of_trl("qwen2_5")
    examples = [CHAT, Example("How many?", "Seven"), CHAT]
    listed = tokenise(tokenizer, examples, 400).examples
    file = tokenise(tokenizer, examples, 400, into=TokenFile()).examples
    assert [file[index] for index in range(3)] == listed
    assert np.array_equal(file.scored, scored(listed))
    assert listed[0].gaps and not listed[1].gaps
    assert file.scored[0] == listed[0].loss_mask.sum()
    batch = collate(listed)
    assert batch.mask.sum().item() == file.scored.sum()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_conversation_that_is_too_long_is_cut_with_its_mask(side):
    tokenizer = of_trl("qwen2_5")
    (complete,) = tokenise(tokenizer, [CHAT], 2000).examples
    mask = complete.loss_mask
    for length in range(1, len(complete.ids)):
        result = tokenise(tokenizer, [CHAT], length, side)
        (cut,) = result.examples
        first = min(len(mask) - length, complete.start - 1) if side == "left" else 0
        assert cut.ids == complete.ids[first : first + length]
        assert np.array_equal(cut.loss_mask, mask[first : first + length])
        assert cut.scored == mask[first : first + length].sum()
        assert result.truncated == 1


def test_a_gap_mask_has_a_start_and_gaps():
    mask = [False, True, True, False, False, True, False]
    start, gaps = tokens_module._start_and_gaps(mask)
    assert (start, gaps) == (1, ((3, 5), (6, 7)))
    assert tokens_module._start_and_gaps([False, False]) == (2, ())


NO_EMPTY = """{%- if not messages %}{{ raise_exception("empty") }}{% endif -%}
{%- for m in messages -%}<|im_start|>{{ m["role"] }}
{{ m["content"] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}"""


@pytest.mark.parametrize("later", [[], CONVERSATION])
def test_a_chat_may_begin_with_an_answer(later):
    greeting = {"role": "assistant", "content": "Hello!"}
    chat = ChatReader()({"messages": [greeting, *later]})
    found = parts(tokenizer_with(NO_EMPTY), chat)
    answers = [turn["content"] for turn in [greeting, *later] if turn["role"] == "assistant"]
    assert found == [f"{answer}<|im_end|>" for answer in answers]
