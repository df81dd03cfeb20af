"""Examples as the rows that trainers read: messages, prompt and completion, or text.

A form cannot hold every example. `row_of` returns None then, so that the caller can count them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lethe.data.conversations import ChatReader, form_of
from lethe.data.examples import WITH_SURROGATES, Example
from lethe.data.records import read_records
from lethe.data.words import word_starts
from lethe.errors import LetheError

Form = Literal["messages", "prompt_completion", "text"]
FORMS: tuple[Form, ...] = ("messages", "prompt_completion", "text")
# The user's turn before a plain text, of which the first quarter is the question.
CONTINUE = "Continue this text:\n\n"
# Form of a record -> form of the rows that are made from a file of such records.
_FORM_OF_ROWS: dict[str, Form] = {
    "messages": "messages",
    "conversations": "messages",
    "alpaca": "messages",
    "prompt_completion": "prompt_completion",
    "text": "text",
}
# Lines of JSON are also split at these by some readers of text.
_LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def row_of(example: Example, form: Form) -> dict[str, Any] | None:
    """An example as a row of this form.

    Returns
    -------
    The row, or None if the form cannot hold it: text and prompt with completion hold no
    conversation of several turns, and text holds none at all.
    """
    if form == "messages":
        return _messages_row(example)
    if example.chat is not None:
        return None
    if form == "text":
        if example.text is not None:
            return {"text": example.text}
        return {"text": f"{example.prompt}\n{example.answer}"}
    if example.text is not None:
        return {"prompt": "", "completion": example.text}
    return {"prompt": example.prompt, "completion": example.answer}


def replay_row_of(example: Example, form: Form) -> dict[str, Any] | None:
    """A replayed example as a row of this form, or None if the form cannot hold it.

    Prompt and completion are read one directly after the other, so a line break is put between
    them, as in the scoring of models without a chat template.
    """
    row = row_of(example, form)
    if row is not None and form == "prompt_completion" and example.text is None:
        row["prompt"] = row["prompt"].rstrip() + "\n"
    return row


def _messages_row(example: Example) -> dict[str, Any]:
    if example.text is None:
        turns, tools = example.conversation()
    else:
        beginning, rest = split_text(example.text)
        turns = [
            {"role": "user", "content": CONTINUE + beginning},
            {"role": "assistant", "content": rest},
        ]
        tools = None
    row: dict[str, Any] = {"messages": turns}
    if tools:
        row["tools"] = tools
    return row


def split_text(text: str) -> tuple[str, str]:
    """The first quarter of the words, which becomes the question, and the rest."""
    starts = word_starts(text)
    count = max(1, len(starts) // 4)
    if len(starts) <= count:
        return "", text
    return text[: starts[count]].rstrip(), text[starts[count] :]


def as_line(row: dict[str, Any]) -> str:
    """A row as one line of JSON, with its line break."""
    return json.dumps(row, ensure_ascii=False).translate(_LINE_BREAKS) + "\n"


@dataclass(frozen=True)
class NewData:
    """The examples of a file of chats, the form of their rows, and the reader's counts in words.

    Attributes
    ----------
    origins
        File and line of each example.
    leaves_out
        Whether the counts name something that was left out, replaced or is not read.
    """

    examples: list[Example]
    form: Form
    summary: str
    origins: list[str]
    leaves_out: bool


def read_new_data(path: Path) -> NewData:
    """Reads a file of chats for a fine-tune.

    Raises
    ------
    LetheError
        If a record is no chat, the records have forms that no single file of rows holds, or there
        is no answer to learn.
    """
    if path.is_dir():
        raise LetheError(
            f"{path}: is a folder; give one file of chats, such as a .jsonl file in it"
        )
    if not path.is_file():
        raise LetheError(f"{path}: no such file; give the file of your chats, such as chats.jsonl")
    read = ChatReader()
    examples: list[Example] = []
    origins: list[str] = []
    forms: dict[Form, str] = {}
    pairs_as_messages = False
    for record in read_records(path):
        try:
            as_read = read(record)
        except LetheError as error:
            raise LetheError(f"{error} ({record.origin})")
        example = as_read.storable()
        if example.is_empty():
            continue
        if example != as_read:
            read.counts[WITH_SURROGATES] += 1
        form = _form_of_row(record)
        if form == "prompt_completion" and example.chat is not None:
            # Only messages hold a pair's system text or tools.
            form = "messages"
            pairs_as_messages = True
        forms.setdefault(form, record.origin)
        examples.append(example)
        origins.append(record.origin)
    if pairs_as_messages:
        forms.pop("prompt_completion", None)
    if not examples:
        raise LetheError(f"{path}: no chat with an answer in it ({read.summary()})")
    if len(forms) > 1:
        first = "; ".join(f"{form}: {origin}" for form, origin in forms.items())
        raise LetheError(
            f"{path}: its records become rows of different forms ({first}), and trainers read "
            "one form per file; split the file"
        )
    return NewData(
        examples=examples,
        form=next(iter(forms)),
        summary=read.summary(),
        origins=origins,
        leaves_out=read.leaves_out(),
    )


def _form_of_row(record: dict[str, Any]) -> Form:
    form = form_of(record)
    if form == "prompt_completion" and isinstance(record["prompt"], list):
        return "messages"
    return _FORM_OF_ROWS[form]
