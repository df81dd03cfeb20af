r"""How the paper turns records of its data sets into prompts and answers (its code's templates).

Prompts are kept to the letter, including spaces at their ends. `lethe.data.tokens` puts them into
the model's chat template. System turns, and everything after a conversation's first exchange, are
left out.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lethe.data.examples import Example
from lethe.data.values import NotText, value_as_text
from lethe.errors import LetheError

RecordFields = dict[str, Any]
RecordReader = Callable[[RecordFields], Example]
SHOTS = 5


def read_messages(fields: RecordFields) -> Example:
    """Reads the first user turn and the first assistant turn after it (Tulu, OLMo's SFT mixtures).

    A conversation without such a pair gets an empty answer; it is counted as empty and dropped.
    """
    roles = []
    contents = []
    for turn in required_field(fields, "messages"):
        roles.append(turn["role"])
        contents.append(_content(turn["content"]))
    if "user" not in roles:
        return Example("", "")
    first = roles.index("user")
    answer = ""
    if "assistant" in roles[first:]:
        answer = contents[roles.index("assistant", first)]
    return Example(contents[first].strip(), answer.strip())


def _content(content: Any) -> str:
    """The text of a turn: text itself, or a list of parts that are all text."""
    if isinstance(content, list):
        parts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text":
                raise LetheError("field 'messages' holds a part of a turn that is not text")
            parts.append(_text(part.get("text"), "messages"))
        return "".join(parts)
    return _text(content, "messages")


def read_dolly(fields: RecordFields) -> Example:
    r"""Reads `Context: {context}\n\n{instruction}`, or the instruction if there is no context."""
    prompt = required_text(fields, "instruction")
    context = _text(fields.get("context"), "context").strip()
    if context:
        prompt = f"Context: {context}\n\n{prompt}"
    return Example(prompt.strip(), required_text(fields, "response").strip())


def mmlu_reader(solved: Sequence[RecordFields]) -> RecordReader:
    """Makes a reader that puts five solved questions of the subject before each question.

    Answers are the text of a choice.
    """
    shots = "".join(_question(fields) + _choice(fields) for fields in solved[:SHOTS])

    def read(fields: RecordFields) -> Example:
        subject = required_text(fields, "subject")
        head = f"The following are multiple choice questions (with answers) about {subject}. "
        return Example(head + shots + _question(fields), _choice(fields))

    return read


def bbh_reader(prompts: Path) -> RecordReader:
    """Makes a reader that puts the chain-of-thought examples of a file before each question.

    The file's first two lines are a header.

    Raises
    ------
    LetheError
        If the file is missing or holds nothing after its second line.
    """
    try:
        lines = prompts.read_text("utf-8-sig").split("\n", 2)
    except (OSError, UnicodeDecodeError) as error:
        raise LetheError(f"{prompts}: not readable as a file of prompts ({error})")
    solved = "".join(lines[2:])
    if not solved.strip():
        raise LetheError(f"{prompts}: nothing after the second line, where solved examples begin")

    def read(fields: RecordFields) -> Example:
        question = f"\nQ: {required_text(fields, 'input')}\nA: The short answer is: "
        return Example(solved + question, required_text(fields, "target"))

    return read


def required_field(fields: RecordFields, name: str) -> Any:
    """Returns a field that the record must have.

    Raises
    ------
    LetheError
        If the record does not have it, with the fields that it has.
    """
    if fields.get(name) is None:
        raise LetheError(f"no field {name!r}; seen: {list(fields)}")
    return fields[name]


def required_text(fields: RecordFields, name: str) -> str:
    """Returns a field that must be there and must be text or a number."""
    return _text(required_field(fields, name), name)


def _text(value: Any, name: str) -> str:
    try:
        return value_as_text(value)
    except NotText as error:
        raise NotText(f"field {name!r} {error}")


def _question(fields: RecordFields) -> str:
    choices = [_text(choice, "choices") for choice in required_field(fields, "choices")]
    options = "\n- ".join(choices)
    return f"\n\nQ: {required_text(fields, 'question')}\nOPTIONS:\n - {options}\nA: "


def _choice(fields: RecordFields) -> str:
    choices = required_field(fields, "choices")
    answer = required_field(fields, "answer")
    is_number = isinstance(answer, int) and not isinstance(answer, bool)
    if not is_number or not 0 <= answer < len(choices):
        raise LetheError(f"answer {answer!r} is no number of one of the {len(choices)} choices")
    return _text(choices[answer], "choices")
