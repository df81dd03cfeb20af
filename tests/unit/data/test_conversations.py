"""Chats in all forms become examples, and everything that is left out is counted."""

import json
import random
from collections import Counter
from datetime import date

import pytest

from lethe.config.data_settings import FileSource
from lethe.data.conversations import ChatReader, form_of
from lethe.data.examples import (
    Example,
    UpstreamExample,
    read_upstream,
    upstream_digest,
    write_upstream,
)
from lethe.data.prompts import read_dolly
from lethe.data.sources import read_source
from lethe.errors import LetheError

SYSTEM = {"role": "system", "content": "Be short."}
ASK = {"role": "user", "content": "How many sacks?"}
SEVEN = {"role": "assistant", "content": "Seven."}
MORE = {"role": "user", "content": "And if you stay?"}
EIGHT = {"role": "assistant", "content": "Eight."}
LONG = [SYSTEM, ASK, SEVEN, MORE, EIGHT]
# JSON that nests deeper than Python reads.
DEEP = "[" * 100_000


def share(turns):
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in turns]


def turns(fields):
    return ChatReader()(fields).conversation()


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        ({"messages": LONG}, "messages"),
        ({"conversations": share(LONG)}, "conversations"),
        ({"system": "Be short.", "conversations": share(LONG[1:])}, "conversations"),
        ({"prompt": LONG[:4], "completion": LONG[4:]}, "prompt_completion"),
        (
            {
                "system": "Be short.",
                "history": [["How many sacks?", "Seven."]],
                "instruction": "And if you stay?",
                "input": "",
                "output": "Eight.",
            },
            "alpaca",
        ),
    ],
)
def test_all_turns_of_a_chat_are_read_in_any_form(fields, form):
    assert form_of(fields) == form
    assert turns(fields) == (LONG, None)
    example = ChatReader()(fields)
    assert example.answer == "Eight."
    assert "How many sacks?" in example.prompt and not example.is_empty()


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [ASK, SEVEN]},
        {"conversations": share([ASK, SEVEN])},
        {"prompt": "How many sacks?", "completion": "Seven."},
        {"prompt": [ASK], "completion": [SEVEN]},
        {"instruction": "How many sacks?", "input": "", "output": "Seven."},
    ],
)
def test_one_question_with_its_answer_is_a_pair_as_before(fields):
    assert ChatReader()(fields) == Example("How many sacks?", "Seven.")


def test_the_input_of_alpaca_stands_under_the_instruction():
    fields = {"instruction": "Count.", "input": "sack, sack", "output": "Two."}
    assert ChatReader()(fields) == Example("Count.\nsack, sack", "Two.")


def test_text_is_plain_text():
    assert ChatReader()({"text": "Seven sacks."}) == Example(text="Seven sacks.")


def test_tools_calls_and_thoughts_are_kept_as_they_are():
    call = {"type": "function", "function": {"name": "count", "arguments": {"of": "sacks"}}}
    tools = [{"type": "function", "function": {"name": "count", "description": "Counts."}}]
    messages = [
        ASK,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "Seven.", "reasoning_content": "I counted."},
    ]
    # A table of many records has null for the keys that a record does not have.
    padded = [{"tool_calls": None, **turn} for turn in messages]
    assert turns({"messages": padded, "tools": tools}) == (messages, tools)
    assert turns({"messages": messages, "tools": json.dumps(tools)}) == (messages, tools)
    shared = [
        {"from": "human", "value": "How many sacks?"},
        {"from": "function_call", "value": '{"name": "count", "arguments": {"of": "sacks"}}'},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "Seven."},
    ]
    assert turns({"conversations": shared})[0][:3] == messages[:3]


def test_the_older_names_of_tools_and_their_calls_are_read_as_the_newer_ones():
    function = {"name": "count", "description": "Counts."}
    call = {"name": "count", "arguments": '{"of": "sacks"}'}
    older = {
        "messages": [
            ASK,
            {"role": "assistant", "content": None, "function_call": call},
            {"role": "function", "name": "count", "content": "7"},
            SEVEN | {"function_call": {}},
        ],
        "functions": [function],
    }
    messages, tools = turns(older)
    assert tools == [{"type": "function", "function": function}]
    tool_calls = [{"type": "function", "function": call}]
    assert messages == [
        ASK,
        {"role": "assistant", "content": "", "tool_calls": tool_calls},
        {"role": "tool", "name": "count", "content": "7"},
        SEVEN,
    ]
    newer = {"messages": messages, "tools": tools}
    assert ChatReader()(older) == ChatReader()(newer)
    assert turns(older | {"functions": json.dumps([function])}) == (messages, tools)
    # A chat that ends with a call has an answer.
    reader = ChatReader()
    assert not reader(older | {"messages": older["messages"][:2]}).is_empty()
    assert not reader.leaves_out()


def test_blank_answers_in_the_middle_are_counted():
    reader = ChatReader()
    blank = SEVEN | {"content": " "}
    thought = blank | {"reasoning_content": "I count."}
    reader({"messages": [ASK, blank, MORE, thought, MORE, EIGHT, ASK, blank]})
    name = "blank answers before another one (loss on the end of the turn only)"
    assert reader.counts[name] == 1
    assert reader.counts["turns after the last answer (left out)"] == 2
    reader = ChatReader()
    reader({"messages": [ASK, blank, MORE, EIGHT]})
    assert reader.leaves_out() and f"1 {name}" in reader.summary()


def test_a_turn_of_several_text_parts_is_read_and_one_of_images_is_refused():
    parts = [{"type": "text", "text": "How many "}, {"type": "text", "text": "sacks?"}]
    assert ChatReader()({"messages": [{**ASK, "content": parts}, SEVEN]}).prompt == ASK["content"]
    for fields in (
        {"messages": [{**ASK, "content": [{"type": "image"}]}, SEVEN]},
        {"messages": [ASK, SEVEN], "images": ["a.png"]},
    ):
        with pytest.raises(LetheError, match="only text can be read"):
            ChatReader()(fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": "a", "reply": "b"}, r"no chat in this record.*seen: \['question', 'reply'\]"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "role 'narrator'; known: system"),
        ({"messages": "hello"}, "'messages' holds no list of turns"),
        ({"messages": ["hello"]}, "an object with a role is wanted"),
        ({"messages": [ASK, SEVEN], "tools": "count"}, "'tools' is text but not JSON"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, "function_call is not JSON"),
        ({"messages": [{"role": "user", "content": True}]}, "'content' holds a truth value"),
        ({"messages": [{"role": "x" * 999, "content": "a"}]}, "role 'x{59}; known: system"),
        ({"messages": [ASK, SEVEN], "tools": DEEP}, "'tools' is text but not JSON"),
        ({"messages": [ASK, SEVEN], "tools": "{}"}, "'tools' holds no list of objects: '{}'"),
        ({"messages": [ASK, SEVEN], "tools": ["count"]}, "'tools' holds no list of objects"),
        ({"messages": [ASK, {**SEVEN, "tool_calls": "count"}]}, "'tool_calls' holds no list of"),
        (
            {"conversations": [{"from": "function_call", "value": DEEP}]},
            "function_call is not JSON",
        ),
        ({"messages": [ASK, SEVEN], "tools": [{"x": float("nan")}]}, "that JSON does not have"),
        (
            {"messages": [ASK, SEVEN | {"function_call": {"name": "f"}}]},
            "function_call is not JSON",
        ),
        (
            {"messages": [ASK, SEVEN | {"function_call": {"name": "f"}, "tool_calls": [{}]}]},
            "both 'tool_calls' and 'function_call'.*keep one",
        ),
        (
            {"messages": [ASK, SEVEN], "functions": [{"type": "function"}]},
            "without a name.*'tools'",
        ),
        (
            {"messages": [ASK, SEVEN], "functions": [{"name": "f"}], "tools": [{"x": 1}]},
            "both 'tools' and 'functions'.*keep one",
        ),
        ({"messages": [ASK, {**SEVEN, "at": date(2020, 1, 1)}, ASK, EIGHT]}, "JSON does not have"),
    ],
)
def test_a_record_that_is_no_chat_is_refused_with_the_reason(fields, message):
    with pytest.raises(LetheError, match=message):
        ChatReader()(fields)


VALUES = [None, "", "text", 7, True, [], {}, ["a"], [["q", "a"]], [{"role": "user"}], LONG]
KEYS = ["messages", "conversations", "prompt", "completion", "instruction", "output", "history"]
KEYS += ["system", "tools", "text", "input", "images", "role", "from", "value", "content"]


def test_any_record_is_an_example_or_a_named_error():
    rng = random.Random(0)
    outcomes = Counter()
    for _ in range(6000):
        fields = {key: rng.choice(VALUES) for key in rng.sample(KEYS, rng.randrange(5))}
        if rng.random() < 0.4:
            turns = [{key: rng.choice(VALUES) for key in rng.sample(KEYS, 4)} for _ in range(2)]
            fields[rng.choice(["messages", "conversations"])] = turns
        try:
            example = ChatReader()(fields)
        except LetheError:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        assert example.storable().digest()
        assert isinstance(example.is_empty(), bool)
    assert min(outcomes.values()) > 200


def write(folder, records):
    text = "\n".join(json.dumps(record) for record in records)
    (folder / "chats.jsonl").write_text(text)
    return FileSource(kind="files", folder=str(folder), format="chat")


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": LONG[1:]},
        {"prompt": LONG[1:4], "completion": LONG[4:]},
        {"conversations": share(LONG[1:])},
    ],
)
def test_a_system_text_beside_the_turns_is_the_first_turn(fields):
    assert turns(fields | {"system": "Be short."})[0][0] == {
        "role": "system",
        "content": "Be short.",
    }


def test_a_system_text_and_tools_beside_a_pair_make_it_a_conversation():
    pair = {"prompt": "q", "completion": "a"}
    tools = [{"type": "function", "function": {"name": "f"}}]
    messages, seen_tools = turns(pair | {"system": "Be short.", "tools": tools})
    assert [turn["role"] for turn in messages] == ["system", "user", "assistant"]
    assert seen_tools == tools
    assert turns(pair) == ([ASK | {"content": "q"}, SEVEN | {"content": "a"}], None)


def test_fields_that_only_have_the_name_of_tools_are_counted_beside_pairs_and_texts():
    reader = ChatReader()
    pair = {"prompt": "q", "completion": "a"}
    assert reader(pair | {"tools": "hammer, saw", "system": {"os": "x"}}) == Example("q", "a")
    assert reader(pair | {"system": " "}) == Example("q", "a")
    assert reader({"text": "x", "tools": "hammer"}) == Example(text="x")
    assert reader.counts["with 'tools' of another kind beside a pair (tools left out)"] == 1
    assert reader.counts["with 'system' of another kind beside a pair (system left out)"] == 1
    assert reader.counts["with 'tools' beside a text (tools left out)"] == 1
    with pytest.raises(LetheError, match="'tools' is text but not JSON"):
        reader({"messages": LONG, "tools": "hammer"})


def test_a_system_text_that_is_left_out_is_counted():
    reader = ChatReader()
    reader({"system": "Be long.", "messages": LONG})
    reader({"system": "Be short.", "text": "plain"})
    reader({"system": LONG[0]["content"], "messages": LONG})
    assert reader.leaves_out()
    assert reader.counts["system texts beside a system turn (left out)"] == 1
    assert reader.counts["with 'system' beside a text (system left out)"] == 1


def test_everything_that_is_left_out_is_counted_and_reported(tmp_path, caplog):
    caplog.set_level("INFO")
    weighted = [{**turn, "weight": 0} for turn in (ASK, SEVEN)]
    source = write(
        tmp_path,
        [
            {"messages": LONG},
            {"messages": [*LONG, MORE]},
            {"messages": [ASK]},
            {"messages": weighted},
            {"prompt": "a", "completion": " "},
        ],
    )
    examples = list(read_source(source, "chats.jsonl"))
    assert [example.is_empty() for example in examples] == [False, False, True, False, True]
    assert examples[0] == examples[1]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.message == (
        "chats.jsonl: 5 chats read; 5 answers; "
        "2 conversations of several turns, with a system turn or with tools; "
        "1 turns after the last answer (left out); 2 without an answer (left out); "
        "2 turns with 'weight', which is not read (they carry loss)"
    )


def test_an_error_names_the_line(tmp_path):
    source = write(tmp_path, [{"messages": LONG}, {"x": 1}])
    with pytest.raises(LetheError, match=r"no chat in this record.*chats\.jsonl, line 2\)"):
        list(read_source(source, "chats.jsonl"))


def test_the_papers_format_still_reads_first_exchanges_and_reports_the_rest(tmp_path, caplog):
    source = write(tmp_path, [{"messages": LONG}, {"messages": [ASK, SEVEN]}])
    source = source.model_copy(update={"format": "messages"})
    assert list(read_source(source, "chats.jsonl")) == [Example("How many sacks?", "Seven.")] * 2
    assert "left out 3 turn(s) of 1 conversation(s)" in caplog.text


def test_conversations_come_back_from_a_table_and_others_keep_their_digests(tmp_path):
    chat = ChatReader()({"messages": [*LONG[:4], {**EIGHT, "content": "\ud83d Eight \U0001f600"}]})
    examples = [chat.storable(), Example("a", "b"), Example(text="c")]
    upstream = [UpstreamExample(f"a-{i}", "a", "heldout", e) for i, e in enumerate(examples)]
    write_upstream(tmp_path / "u.parquet", upstream)
    assert list(read_upstream(tmp_path / "u.parquet")) == upstream
    assert Example("a", "b").digest() == (
        "6a0929cf07513f15b8ab60f13d28cd8cb17f8e8c97505fe2aede1c741583aeb7"
    )
    assert len({example.digest() for example in examples}) == 3
    assert len(upstream_digest(upstream)) == 64
    assert Example(**chat.as_dict()) == chat


def test_the_books_that_logs_keep_on_turns_make_no_other_chat():
    reader = ChatReader()
    plain = reader({"messages": [ASK, SEVEN]})
    for number in range(2):
        logged = [turn | {"id": number, "created_at": "today"} for turn in (ASK, SEVEN)]
        assert reader({"messages": logged}) == plain
    assert reader.counts["turns with 'id' (id left out)"] == 4 and reader.leaves_out()
    assert reader({"messages": [ASK, SEVEN | {"tool_calls": []}]}) == plain


def test_the_context_of_an_instruction_stays_with_it():
    fields = {"instruction": "Who wrote it?", "context": "Ada wrote the letter.", "response": "Ada"}
    assert ChatReader()(fields) == read_dolly(fields)
    assert ChatReader()(fields).prompt == "Context: Ada wrote the letter.\n\nWho wrote it?"
