"""Answers begin and end where the model's own chat template begins and ends them."""

import pytest
from helpers import tiny

from lethe.data import chat as chat_module
from lethe.data.chat import end_of_turn, render_turn, stop_tokens
from lethe.data.examples import Example
from lethe.data.tokens import prompt_ids, prompt_text, tokenise
from lethe.errors import LetheError

SPECIAL = [
    *("<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "</s>"),
    *("[INST]", "[/INST]", "<|return|>"),
]
OPEN = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TURNS = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}"
)
CHATML = TURNS + OPEN
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "{{ '<start_of_turn>' + role + '\n' + (m.content | trim) + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
)
# Writes the header of the answer only with the answer.
HEADER_WITH_ANSWER = (
    "{% for m in messages %}"
    "{{ ('Human' if m.role == 'user' else 'Robot') + ': ' + m.content + '</s>' }}{% endfor %}"
)
# Closes an empty thinking block before a finished answer.
CLOSED_THOUGHTS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}" + OPEN
)
# Opens a thinking block for the model to fill, and drops it from finished answers.
OPEN_THOUGHTS = (
    TURNS + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# Opens a thinking block in finished answers as well.
THOUGHTS_IN_CONTENT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{{ '<think>\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
# Names the channel of a finished answer only.
CHANNEL = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role }}"
    "{{ ('<channel>final\n' if m.role == 'assistant' else '\n') + m.content }}"
    "{{ '<|return|>' if m.role == 'assistant' else '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)
PLAIN_END = (
    "{% for m in messages %}{{ '### ' + m.role + '\n' + m.content + '\n### end\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"
)
PAIR = Example("How many sacks?", "Seven")
USER = "<|im_start|>user\nHow many sacks?<|im_end|>\n"


def chat(template):
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = template
    return tokenizer


def split(tokenizer, example=PAIR, **options):
    """Text before the loss, and text with loss."""
    (tokens,) = tokenise(tokenizer, [example], 200, **options).examples
    ids = tokens.ids
    return tokenizer.decode(ids[: tokens.start]), tokenizer.decode(ids[tokens.start :])


@pytest.mark.parametrize(
    ("template", "prompt", "answer"),
    [
        (CHATML, f"{USER}<|im_start|>assistant\n", "Seven<|im_end|>"),
        (
            GEMMA,
            "<|endoftext|><start_of_turn>user\nHow many sacks?<end_of_turn>\n"
            "<start_of_turn>model\n",
            "Seven<end_of_turn>",
        ),
        (LLAMA_2, "<|endoftext|>[INST] How many sacks? [/INST]", " Seven </s>"),
        (HEADER_WITH_ANSWER, "Human: How many sacks?</s>Robot:", " Seven</s>"),
        (
            CLOSED_THOUGHTS,
            f"{USER}<|im_start|>assistant\n<think>\n\n</think>\n\n",
            "Seven<|im_end|>",
        ),
        (OPEN_THOUGHTS, f"{USER}<|im_start|>assistant\n", "Seven<|im_end|>"),
        (THOUGHTS_IN_CONTENT, f"{USER}<|im_start|>assistant\n", "Seven<|im_end|>"),
        (
            CHANNEL,
            "<|im_start|>user\nHow many sacks?<|im_end|><|im_start|>assistant<channel>final\n",
            "Seven<|return|>",
        ),
        (PLAIN_END, "### user\nHow many sacks?\n### end\n### assistant\n", "Seven\n### end"),
    ],
)
def test_an_answer_stands_where_the_template_puts_it_and_ends_as_it_ends_it(
    template, prompt, answer
):
    tokenizer = chat(template)
    assert split(tokenizer) == (prompt, answer)
    assert prompt_text(tokenizer, PAIR.prompt) == prompt
    assert tokenizer.decode(prompt_ids(tokenizer, PAIR.prompt)) == prompt
    # Without its end, an answer is scored as far as its last word.
    text = split(tokenizer, include_eos=False)[1]
    assert text.strip() == "Seven" and answer.startswith(text)


@pytest.mark.parametrize(
    ("template", "end"),
    [(CHATML, "<|im_end|>"), (GEMMA, "<end_of_turn>"), (LLAMA_2, "</s>"), (CHANNEL, "<|return|>")],
)
def test_generation_stops_at_the_templates_end_and_at_the_end_token(template, end):
    tokenizer = chat(template)
    stops = {tokenizer.convert_tokens_to_ids(end), tokenizer.eos_token_id}
    assert stop_tokens(tokenizer) == sorted(stops)


def test_generation_does_not_stop_at_a_piece_of_an_end_that_is_ordinary_text():
    tokenizer = chat(PLAIN_END)
    assert stop_tokens(tokenizer) == [tokenizer.eos_token_id]
    assert stop_tokens(tiny.tokenizer()) == [tokenizer.eos_token_id]


def test_an_answer_that_stands_in_the_question_or_looks_like_thoughts_is_kept():
    tokenizer = chat(CHATML)
    assert split(tokenizer, Example("Say Seven", "Seven"))[1] == "Seven<|im_end|>"
    answer = "<think>sum</think> 7"
    assert split(tokenizer, Example("What is <think>?", answer))[1] == f"{answer}<|im_end|>"
    prompt = split(chat(OPEN_THOUGHTS), Example("What is <think>?", "7"))[0]
    assert prompt.endswith("What is <think>?<|im_end|>\n<|im_start|>assistant\n")


def test_a_template_that_ends_no_turn_ends_answers_with_the_end_token():
    tokenizer = chat("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    assert end_of_turn(tokenizer, "\n") == [tokenizer.eos_token_id]


def test_of_several_templates_the_default_is_used():
    tokenizer = chat({"default": CHATML, "rag": LLAMA_2})
    assert split(tokenizer) == (f"{USER}<|im_start|>assistant\n", "Seven<|im_end|>")


NEEDS_SYSTEM = (
    "{% if messages[0].role != 'system' %}"
    "{{ raise_exception('a system turn must come first') }}{% endif %}" + CHATML
)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (NEEDS_SYSTEM, "refused .*a system turn must come first"),
        ("{{ messages[5].content }}", "refused .*no element 5"),
        ("{% for m in messages %}{{ m.content }", "refused .*unexpected"),
        ("{{ messages | nix }}", "refused .*nix"),
        ("{{ 1 / 0 }}", "refused .*division"),
        ("{{ messages[0].content }}", "does not write the assistant's answer"),
        ({"tool_use": CHATML, "rag": CHATML}, r"several chat templates \(rag, tool_use\)"),
    ],
)
def test_a_template_that_refuses_the_conversation_is_named_with_its_reason(template, reason):
    tokenizer = chat(template)
    tokenizer.name_or_path = "results/x/olmo/base"
    pattern = f"model 'results/x/olmo/base': .*{reason}.*set models.<name>.chat_template"
    for use in (
        lambda: tokenise(tokenizer, [PAIR], 100),
        lambda: prompt_ids(tokenizer, "Hello"),
        lambda: stop_tokens(tokenizer),
    ):
        with pytest.raises(LetheError, match=pattern):
            use()


def test_the_example_that_a_template_refuses_is_named():
    tokenizer = chat("{{ messages[5].content }}")
    examples = [Example(text="Seven sacks"), PAIR]
    for origins, origin in ((None, "example 2"), (["a", "b.jsonl, line 3"], "b.jsonl, line 3")):
        with pytest.raises(LetheError, match="refused") as caught:
            tokenise(tokenizer, examples, 100, origins=origins)
        assert str(caught.value).endswith(f"({origin}: {PAIR.prompt[:60]!r})")
        assert "or tokenizer.chat_template in your program" in str(caught.value)


def test_a_template_that_does_not_end_is_stopped(monkeypatch):
    monkeypatch.setattr(chat_module, "MOST_SECONDS", 0.5)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer = chat(loop + CHATML)
    with pytest.raises(LetheError, match="did not end within 0.5 seconds"):
        prompt_ids(tokenizer, "Hello")
    # A template that ends is not stopped later.
    monkeypatch.setattr(chat_module, "MOST_SECONDS", 60)
    assert split(chat(CHATML))[1] == "Seven<|im_end|>"


def test_a_template_that_does_not_end_in_an_answer_is_stopped(monkeypatch):
    monkeypatch.setattr(chat_module, "MOST_SECONDS", 0.5)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    tokenizer = chat("{% if messages[-1].role == 'assistant' %}" + loop + "{% endif %}" + CHATML)
    with pytest.raises(LetheError, match="did not end within 0.5 seconds"):
        split(tokenizer)


def test_plain_text_needs_no_template():
    tokens = tokenise(chat(NEEDS_SYSTEM), [Example(text="Seven sacks")], 100).examples
    assert tokens[0].ids == tiny.tokenizer()("Seven sacks")["input_ids"]


def test_a_turn_is_the_templates_own_text():
    turn = render_turn(chat(LLAMA_2), "Hello")
    assert turn.prompt + turn.lead + "Seven" + turn.tail == chat(LLAMA_2).apply_chat_template(
        [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Seven"}],
        tokenize=False,
    )
