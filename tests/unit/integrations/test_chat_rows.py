"""Chats of every kind as rows with labels, beside those that trl makes of the same chats."""

import json
import logging
import re

import datasets
import numpy as np
import pytest
from helpers import tiny
from helpers.chats import records, tokenizer

from lethe.errors import LetheError
from lethe.integrations import labelled_chats

trl = pytest.importorskip("trl")
MARKED = "qwen3_training"
CALL = {"type": "function", "function": {"name": "count", "arguments": {"of": "sacks"}}}
TOOLS = [{"type": "function", "function": {"name": "count", "description": "Counts."}}]
QUESTION = {"role": "user", "content": "How many sacks?"}
WITH_TOOLS = {
    "messages": [
        QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "7"},
        {"role": "assistant", "content": "Seven."},
    ],
    "tools": TOOLS,
}
SHARED_WITH_TOOLS = {
    "conversations": [
        {"from": "system", "value": "Count."},
        {"from": "human", "value": "How many sacks?"},
        {"from": "function_call", "value": json.dumps(CALL["function"])},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "Seven."},
    ],
    "tools": json.dumps(TOOLS),
}
THINKING = {
    "messages": [
        QUESTION,
        {"role": "assistant", "content": "Seven.", "reasoning_content": "Six and one."},
        {"role": "user", "content": "And if you stay?"},
        {"role": "assistant", "content": "Eight.", "reasoning_content": "One more."},
    ]
}
SHARED_THINKING = {
    "conversations": [
        {"from": "human", "value": "How many sacks?"},
        {"from": "gpt", "value": "<think>\nSix and one.\n</think>\n\nSeven."},
    ]
}


def alpaca_turns(record):
    """An Alpaca record as the messages that trl reads."""
    question = f"{record['instruction']}\n{record['input']}"
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": record["output"]},
        ]
    }


# Name -> records, and the same chats as trl reads them.
KINDS = {
    "messages": (records("messages"), records("messages")),
    "sharegpt": (records("sharegpt"), records("messages")),
    "alpaca": (records("alpaca"), [alpaca_turns(record) for record in records("alpaca")]),
    "tools": ([WITH_TOOLS], [WITH_TOOLS]),
    "sharegpt with tools": (
        [SHARED_WITH_TOOLS],
        [
            {
                "messages": [{"role": "system", "content": "Count."}, *WITH_TOOLS["messages"]],
                "tools": TOOLS,
            }
        ],
    ),
    "thinking": ([THINKING], [THINKING]),
    "sharegpt with thinking": (
        [SHARED_THINKING],
        [
            {
                "messages": [
                    QUESTION,
                    {
                        "role": "assistant",
                        "content": "<think>\nSix and one.\n</think>\n\nSeven.",
                    },
                ]
            }
        ],
    ),
}


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def trainer_of(rows, folder, reader, **changes):
    model = tiny.model("llama", scale=1)
    model.resize_token_embeddings(len(reader))
    options = {"max_length": None, "max_steps": 1, "shuffle_dataset": False}
    return trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            output_dir=str(folder),
            report_to=[],
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            **options | changes,
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=reader,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_and_labels_are_those_of_trl(kind, tmp_path):
    lines, same_for_trl = KINDS[kind]
    reader = tokenizer(MARKED)
    rows = labelled_chats(write(tmp_path / "chats.jsonl", lines), reader, max_tokens=2000)
    expected = trainer_of(same_for_trl, tmp_path, reader, assistant_only_loss=True).train_dataset
    assert len(rows) == len(expected)
    for row, other in zip(rows, expected, strict=True):
        length = len(row["input_ids"])
        assert row["input_ids"] == other["input_ids"][:length]
        assert row["labels"] == other["labels"][:length]
        # trl also keeps the line break after the last turn.
        assert reader.decode(other["input_ids"][length:]) in ("", "\n")


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_without_marks_gives_rows_that_trl_trains_on(kind, tmp_path):
    """trl's own masks need marks; its template of this model without them has the same text."""
    lines, _ = KINDS[kind]
    path = write(tmp_path / "chats.jsonl", lines)
    reader = tokenizer("qwen3")
    assert not re.search(r"\{%-?\s*generation", reader.chat_template)
    rows = labelled_chats(path, reader, max_tokens=2000)
    for row in rows:
        answers = [token for token in row["labels"] if token != -100]
        assert "sacks" in reader.decode(answers) or "even" in reader.decode(answers)
    trainer = trainer_of(rows, tmp_path / "trained", reader)
    assert list(trainer.train_dataset["labels"]) == [row["labels"] for row in rows]
    assert np.isfinite(trainer.train().training_loss)


@pytest.mark.parametrize("form", ["prompt_completion", "text"])
def test_rows_without_turns_are_left_to_trl(form, tmp_path):
    path = write(tmp_path / "rows.jsonl", records(form))
    with pytest.raises(LetheError, match=f"its rows are {form}.*trl reads the file itself"):
        labelled_chats(path, tokenizer(MARKED), max_tokens=2000)


def test_a_chat_that_is_too_long_loses_its_end_and_is_counted_without_an_answer(tmp_path, caplog):
    long = {"messages": [{"role": "user", "content": "sacks " * 300}, records("messages")[0]]}
    long["messages"][1] = {"role": "assistant", "content": "Seven."}
    path = write(tmp_path / "chats.jsonl", [*records("messages", 3), long])
    reader = tokenizer(MARKED)
    with caplog.at_level(logging.WARNING):
        rows = labelled_chats(path, reader, max_tokens=200)
    assert len(rows) == 3
    assert "left out 1 of 4 chats" in caplog.text
    assert (
        "1 of 4 chats are longer than 200 tokens and lose their end, 1 of them with all their "
        "answers; raise max_tokens" in caplog.text
    )
    with pytest.raises(LetheError, match="raise max_tokens"):
        labelled_chats(path, reader, max_tokens=4)


def test_chats_that_lose_a_part_and_what_is_not_read_are_warnings(tmp_path, caplog):
    turns = [QUESTION, {"role": "assistant", "content": "sacks " * 300}]
    weighted = [QUESTION, {"role": "assistant", "content": "Seven.", "weight": 0}]
    lines = [{"messages": turns}, {"messages": weighted}, {"messages": [QUESTION]}]
    path = write(tmp_path / "chats.jsonl", lines)
    with caplog.at_level(logging.WARNING):
        rows = labelled_chats(path, tokenizer(MARKED), max_tokens=200)
    assert len(rows) == 2 and len(rows[0]["input_ids"]) == 200
    summary, cut = (record.message for record in caplog.records)
    assert "1 without an answer (left out)" in summary
    assert "1 turns with 'weight', which is not read" in summary
    assert "1 of 2 chats are longer than 200 tokens and lose their end, 0 of them" in cut
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        labelled_chats(path, tokenizer(MARKED), max_tokens=2000)
    assert "longer than" not in caplog.text
    for max_tokens in (-1, 0, 1):
        with pytest.raises(LetheError, match=f"max_tokens is {max_tokens}; a row has at least 2"):
            labelled_chats(path, tokenizer(MARKED), max_tokens=max_tokens)


def test_a_chat_that_the_template_refuses_is_named_with_its_line(tmp_path):
    lines = [{"messages": [QUESTION]}, *records("messages", 2)]
    path = write(tmp_path / "chats.jsonl", lines)
    reader = tokenizer(MARKED)
    refuse = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    )
    reader.chat_template = refuse + reader.chat_template
    message = r"no system turn.*tokenizer.chat_template.*\(.*chats.jsonl, line 3: 'system: Be short"
    with pytest.raises(LetheError, match=message):
        labelled_chats(path, reader, max_tokens=200)
