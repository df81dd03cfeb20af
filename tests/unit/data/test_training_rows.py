"""Examples become the rows that trainers read, and files of chats are read whole."""

import json

import pytest
from helpers.chats import FORMS, records, write_records

from lethe.data.conversations import ChatReader
from lethe.data.examples import Example
from lethe.data.training_rows import (
    CONTINUE,
    as_line,
    read_new_data,
    replay_row_of,
    row_of,
    split_text,
)
from lethe.errors import LetheError

PAIR = Example("How many?", "Seven.")
TEXT = Example(text="The river of forgetting runs\nslow and cold.")
TURNS = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "Seven."},
]
CHAT = ChatReader()({"messages": TURNS, "tools": [{"type": "function"}]})


def test_every_form_of_row_holds_what_it_can():
    assert row_of(PAIR, "messages") == {"messages": TURNS[1:]}
    assert row_of(CHAT, "messages") == {"messages": TURNS, "tools": [{"type": "function"}]}
    assert row_of(PAIR, "prompt_completion") == {"prompt": "How many?", "completion": "Seven."}
    assert row_of(TEXT, "prompt_completion") == {"prompt": "", "completion": TEXT.text}
    assert row_of(PAIR, "text") == {"text": "How many?\nSeven."}
    assert row_of(TEXT, "text") == {"text": TEXT.text}
    assert row_of(CHAT, "text") is None and row_of(CHAT, "prompt_completion") is None


def test_a_plain_text_among_chats_is_continued_by_the_assistant():
    question, answer = row_of(TEXT, "messages")["messages"]
    assert question == {"role": "user", "content": f"{CONTINUE}The river"}
    assert answer == {"role": "assistant", "content": "of forgetting runs\nslow and cold."}
    assert split_text("word") == ("", "word")
    assert split_text("") == ("", "")


def test_a_replayed_prompt_is_apart_from_its_completion():
    assert replay_row_of(PAIR, "prompt_completion")["prompt"] == "How many?\n"
    assert replay_row_of(PAIR, "messages") == row_of(PAIR, "messages")


def test_a_row_is_one_line_for_every_reader():
    row = {"text": "a\nb\u2028c\u0085d\u2029e é"}
    line = as_line(row)
    assert len(line.splitlines()) == 1
    assert json.loads(line) == row


@pytest.mark.parametrize("form", FORMS)
def test_a_file_of_chats_is_read_in_every_form(tmp_path, form):
    path = write_records(tmp_path / "chats.jsonl", form)
    new = read_new_data(path)
    wanted = {"sharegpt": "messages", "alpaca": "messages"}.get(form, form)
    assert new.form == wanted
    assert len(new.examples) == 20
    rows = [row_of(example, new.form) for example in new.examples]
    if form in ("messages", "prompt_completion", "text"):
        assert rows == records(form)
    if form == "sharegpt":
        assert rows == records("messages")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"text": "a b"}\n{"prompt": "a", "completion": "b"}',
            r"different forms \(text: .*line 1; prompt_completion: .*line 2\)",
        ),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no chat with an answer in it"),
        ('{"question": "a"}', r"no chat in this record.*chats\.jsonl, line 1"),
    ],
)
def test_a_file_that_is_no_training_data_is_refused(tmp_path, text, message):
    path = tmp_path / "chats.jsonl"
    path.write_text(text)
    with pytest.raises(LetheError, match=message):
        read_new_data(path)
    with pytest.raises(LetheError, match="none.jsonl: no such file; give the file of your chats"):
        read_new_data(tmp_path / "none.jsonl")
    with pytest.raises(LetheError, match="is a folder; give one file of chats"):
        read_new_data(tmp_path)


def test_records_without_an_answer_are_counted(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text('{"text": "a b"}\n{"messages": []}')
    new = read_new_data(path)
    assert new.examples == [Example(text="a b")]
    assert new.summary == "2 chats read; 1 without an answer (left out)"
    assert new.leaves_out and new.origins == [f"{path}, line 1"]


def test_blank_texts_are_counted(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text('{"text": "a b"}\n{"text": "  "}\n{"text": ""}')
    new = read_new_data(path)
    assert new.examples == [Example(text="a b")]
    assert new.summary == "3 chats read; 2 without text (left out)" and new.leaves_out


def test_halves_of_surrogate_pairs_are_counted(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text('{"text": "a \\ud83d b"}\n{"text": "\\ud83d\\ude00"}\n{"text": "é"}')
    new = read_new_data(path)
    assert [example.text for example in new.examples] == ["a ? b", "\U0001f600", "é"]
    assert new.summary == (
        "3 chats read; 1 with half of a surrogate pair, which UTF-8 does not have (replaced by ?)"
    )
    assert new.leaves_out
