r"""How the paper turns records of its data sets into prompts and answers (its code's templates).

Prompts are kept to the letter, spaces at their ends included. Who speaks is the chat template's
business (`lethe.data.tokens`); system turns and all but a conversation's first exchange are left
out.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lethe.data.examples import Example
from lethe.errors import LetheError

Record = dict[str, Any]
Read = Callable[[Record], Example]
SHOTS = 5


def messages(record: Record) -> Example:
    """The first user turn and the first assistant turn after it (Tulu, OLMo's SFT mixtures).

    A conversation without such a pair gets an empty answer, and is counted and dropped as that.
    """
    turns = [(turn["role"], turn["content"] or "") for turn in field(record, "messages")]
    roles = [role for role, _ in turns]
    if "user" not in roles:
        return Example("", "")
    asked = roles.index("user")
    answers = [content for role, content in turns[asked + 1 :] if role == "assistant"]
    return Example(turns[asked][1].strip(), answers[0].strip() if answers else "")


def dolly(record: Record) -> Example:
    r"""`Context: {context}\n\n{instruction}` where there is a context, else the instruction."""
    instruction, context = field(record, "instruction"), (record.get("context") or "").strip()
    prompt = f"Context: {context}\n\n{instruction}" if context else instruction
    return Example(prompt.strip(), field(record, "response").strip())


def mmlu(solved: Sequence[Record]) -> Read:
    """Five solved questions of the subject before each; answers are the text of a choice."""
    shots = "".join(_question(record) + _choice(record) for record in solved[:SHOTS])

    def read(record: Record) -> Example:
        subject = field(record, "subject")
        head = f"The following are multiple choice questions (with answers) about {subject}. "
        return Example(head + shots + _question(record), _choice(record))

    return read


def bbh(prompts: Path) -> Read:
    """A file's chain-of-thought examples, after its two lines of head, before each question.

    Raises
    ------
    LetheError
        If the file is missing or holds nothing after its second line.
    """
    try:
        parts = prompts.read_text("utf-8").split("\n", 2)
    except (OSError, UnicodeDecodeError) as error:
        raise LetheError(f"{prompts}: not readable as a file of prompts ({error})")
    if not (solved := "".join(parts[2:])).strip():
        raise LetheError(f"{prompts}: nothing after the second line, where solved examples begin")

    def read(record: Record) -> Example:
        question = f"\nQ: {field(record, 'input')}\nA: The short answer is: "
        return Example(solved + question, str(field(record, "target")))

    return read


def field(record: Record, name: str) -> Any:
    """A field that the record must have.

    Raises
    ------
    LetheError
        If it does not, with those that it has.
    """
    if record.get(name) is None:
        raise LetheError(f"no field {name!r}; seen: {list(record)}")
    return record[name]


def _question(record: Record) -> str:
    options = "\n- ".join(field(record, "choices"))
    return f"\n\nQ: {field(record, 'question')}\nOPTIONS:\n - {options}\nA: "


def _choice(record: Record) -> str:
    choices, answer = field(record, "choices"), field(record, "answer")
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise LetheError(f"answer {answer!r} is no number of one of the {len(choices)} choices")
    return choices[answer]
