"""Chats in the forms that trainers read, as examples.

A record's fields show its form: `messages` (role, content), ShareGPT's `conversations` (from,
value), Alpaca's `instruction`, `input` and `output`, `prompt` and `completion`, or `text`. All
turns are kept, as are tools, calls of tools and thoughts, which the model's own chat template
writes. OpenAI's older names `functions` and `function_call` are read as `tools` and `tool_calls`,
because templates know only these.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lethe.data.examples import Example
from lethe.data.values import NotText, value_as_text
from lethe.errors import LetheError

# Names of roles in ShareGPT's form and elsewhere -> names that chat templates know.
ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "tool": "tool",
    "ipython": "tool",
    "observation": "tool",
    "function": "tool",
    "function_call": "function_call",
}
# Keys of a turn by which some trainers leave single turns out of the loss.
_LOSS_KEYS = ("weight", "train", "loss", "train_on_turn")
# Keys by which logs keep their books on single turns. No template reads them.
_BOOKKEEPING = (
    "id",
    "uuid",
    "message_id",
    "turn_id",
    "index",
    "timestamp",
    "created",
    "created_at",
    "date",
    "time",
)
# How a blank answer before another one is learned.
_END_ONLY = "loss on the end of the turn only"
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")
_OUTPUTS = ("output", "response", "answer")


class ChatReader:
    """Reads records as chats and counts everything that it leaves out.

    Attributes
    ----------
    counts
        Records by form, and the records, turns and keys that were left out, by reason.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(self, fields: dict[str, Any]) -> Example:
        """One record as an example; one without an answer is an empty pair, or an empty text.

        Raises
        ------
        LetheError
            If the record has no known form, or holds a turn that is not text.
        """
        for key in _MEDIA:
            if fields.get(key):
                raise LetheError(f"field {key!r} holds images or sound; only text can be read")
        form = form_of(fields)
        self.counts["records"] += 1
        if form == "text":
            for key in ("system", "tools", "functions"):
                if fields.get(key):
                    self.counts[f"with {key!r} beside a text ({key} left out)"] += 1
            text = _text(fields["text"], "text")
            if not text.strip():
                self.counts["without text (left out)"] += 1
            return Example(text=text)
        is_pair = form == "prompt_completion" and not isinstance(fields["prompt"], list)
        system = self._beside(fields, "system", lambda value: _text(value, "system"), is_pair)
        tools = self._beside(fields, "tools", _tools, is_pair)
        functions = self._beside(fields, "functions", _functions, is_pair)
        if tools and functions:
            raise LetheError(
                "the record has both 'tools' and 'functions', the older name of the same; keep one"
            )
        tools = tools or functions
        if is_pair:
            prompt = _text(fields["prompt"], "prompt")
            completion = _text(fields["completion"], "completion")
            if not (system or tools):
                return self._pair(prompt, completion)
            turns = [{"role": "user", "content": prompt}]
            turns.append({"role": "assistant", "content": completion})
        elif form == "prompt_completion":
            turns = [*fields["prompt"], *_as_list(fields["completion"], "completion")]
        elif form == "alpaca":
            turns = _alpaca_turns(fields)
        else:
            turns = list(_as_list(fields[form], form))
        turns = [self._turn(turn) for turn in turns]
        return self._conversation(self._with_system(turns, system), tools)

    def _beside(
        self, fields: dict[str, Any], key: str, read: Callable[[Any], Any], is_pair: bool
    ) -> Any:
        """A field beside the turns. Beside a pair, a field of this name may mean something else."""
        try:
            return read(fields.get(key))
        except LetheError:
            if not is_pair:
                raise
            self.counts[f"with {key!r} of another kind beside a pair ({key} left out)"] += 1
            return None

    def _with_system(self, turns: list[dict[str, Any]], system: str | None) -> list[dict[str, Any]]:
        """The turns with a record's system text, unless they begin with a system turn already."""
        if not (system or "").strip():
            return turns
        if not turns or turns[0]["role"] != "system":
            return [{"role": "system", "content": system}, *turns]
        if turns[0]["content"] != system:
            self.counts["system texts beside a system turn (left out)"] += 1
        return turns

    def _pair(self, prompt: str, answer: str) -> Example:
        if not answer.strip():
            self.counts["without an answer (left out)"] += 1
            return Example("", "")
        return Example(prompt, answer)

    def _turn(self, turn: Any) -> dict[str, Any]:
        """A turn with the names that chat templates know, without keys that are null."""
        if not isinstance(turn, dict):
            raise LetheError(f"a turn is {str(turn)[:60]!r}, but an object with a role is wanted")
        turn = {key: value for key, value in turn.items() if value is not None}
        name = turn.pop("role", None) or turn.pop("from", None)
        if not isinstance(name, str) or name not in ROLES:
            raise LetheError(f"a turn has the role {repr(name)[:60]}; known: {', '.join(ROLES)}")
        content = turn.pop("content", None)
        content = turn.pop("value", None) if content is None else content
        for key in _LOSS_KEYS:
            if key in turn:
                del turn[key]
                self.counts[f"turns with {key!r}, which is not read (they carry loss)"] += 1
        for key in _BOOKKEEPING:
            if key in turn:
                del turn[key]
                self.counts[f"turns with {key!r} ({key} left out)"] += 1
        text = _content(content)
        if turn.get("tool_calls") in ([], {}, ""):
            del turn["tool_calls"]
        if "tool_calls" in turn:
            _refuse_other_items(turn["tool_calls"], "tool_calls")
        call = turn.pop("function_call", None)
        if call:
            if "tool_calls" in turn:
                raise LetheError(
                    "a turn has both 'tool_calls' and 'function_call', the older name of the same; "
                    "keep one"
                )
            turn["tool_calls"] = _calls(call)
        if name == "function_call":
            return {"role": "assistant", "content": "", "tool_calls": _calls(text), **turn}
        return {"role": ROLES[name], "content": text, **turn}

    def _conversation(self, turns: list[dict[str, Any]], tools: list[Any] | None) -> Example:
        answers = [number for number, turn in enumerate(turns) if _is_answer(turn)]
        if not answers:
            self.counts["without an answer (left out)"] += 1
            return Example("", "")
        last = answers[-1]
        if last + 1 < len(turns):
            self.counts["turns after the last answer (left out)"] += len(turns) - last - 1
            turns = turns[: last + 1]
        self.counts["answers"] += len(answers)
        blank = sum(map(_is_blank_answer, turns))
        if blank:
            self.counts[f"blank answers before another one ({_END_ONLY})"] += blank
        if _is_pair(turns, tools):
            return Example(turns[0]["content"], turns[1]["content"])
        self.counts["conversations of several turns, with a system turn or with tools"] += 1
        content: dict[str, Any] = {"messages": turns}
        if tools:
            content["tools"] = tools
        try:
            chat = json.dumps(content, ensure_ascii=False, allow_nan=False)
        except (ValueError, TypeError, RecursionError) as error:
            raise LetheError(f"a turn or tool holds a value that JSON does not have ({error})")
        return Example(prompt=readable(turns[:-1]), answer=readable_turn(turns[-1]), chat=chat)

    def summary(self) -> str:
        """The counts in words."""
        parts = [f"{self.counts['records']} chats read"]
        parts += [f"{count} {name}" for name, count in self.counts.items() if name != "records"]
        return "; ".join(parts)

    def leaves_out(self) -> bool:
        """Whether anything was left out or replaced, or an answer without content is learned."""
        words = ("left out", "not read", "replaced", _END_ONLY)
        return any(word in name for name in self.counts for word in words)


def form_of(fields: dict[str, Any]) -> str:
    """The form of a record: messages, conversations, prompt_completion, alpaca or text.

    Raises
    ------
    LetheError
        If it has none of these, with the fields that it has.
    """
    present = {key for key, value in fields.items() if value is not None}
    for form in ("messages", "conversations"):
        if form in present:
            return form
    if {"prompt", "completion"} <= present:
        return "prompt_completion"
    if "instruction" in present and present & set(_OUTPUTS):
        return "alpaca"
    if "text" in present:
        return "text"
    raise LetheError(
        "no chat in this record: it has none of messages, conversations, prompt with completion, "
        f"instruction with output, or text; seen: {list(fields)}"
    )


def readable(turns: Sequence[dict[str, Any]]) -> str:
    """Turns as text for people: role, content."""
    if len(turns) == 1 and turns[0]["role"] == "user":
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role']}: {readable_turn(turn)}" for turn in turns)


def readable_turn(turn: dict[str, Any]) -> str:
    """The content of a turn, or its calls of tools as JSON."""
    return turn["content"] or json.dumps(turn.get("tool_calls", ""), ensure_ascii=False)


def _is_answer(turn: dict[str, Any]) -> bool:
    return turn["role"] == "assistant" and bool(turn["content"].strip() or turn.get("tool_calls"))


def _is_blank_answer(turn: dict[str, Any]) -> bool:
    """Whether an assistant turn has no content, call of a tool or thought."""
    if turn["role"] != "assistant" or turn["content"].strip():
        return False
    return not any(value for key, value in turn.items() if key not in ("role", "content", "name"))


def _is_pair(turns: list[dict[str, Any]], tools: list[Any] | None) -> bool:
    """Whether the turns are one question and its answer, which are read without the spaces around.

    Others keep their spaces, so that a trainer's own reading is the same.
    """
    if tools or [turn["role"] for turn in turns] != ["user", "assistant"]:
        return False
    for turn in turns:
        if set(turn) != {"role", "content"} or turn["content"] != turn["content"].strip():
            return False
    return True


def _alpaca_turns(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Earlier exchanges, the instruction with its input, and the output."""
    turns = []
    for exchange in _as_list(fields.get("history") or [], "history"):
        if not isinstance(exchange, list | tuple) or len(exchange) != 2:
            raise LetheError("field 'history' holds no pairs of a question and its answer")
        question, answer = exchange
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": answer})
    question = _text(fields["instruction"], "instruction")
    addition = _text(fields.get("input"), "input")
    context = _text(fields.get("context"), "context").strip()
    if addition.strip():
        question = f"{question}\n{addition}"
    if context:
        # As Dolly's own records are read (`lethe.data.prompts`).
        question = f"Context: {context}\n\n{question}"
    key = next(key for key in _OUTPUTS if fields.get(key) is not None)
    turns.append({"role": "user", "content": question})
    turns.append({"role": "assistant", "content": _text(fields[key], key)})
    return turns


def _content(content: Any) -> str:
    """The text of a turn: text itself, or a list of parts that are all text."""
    if not isinstance(content, list):
        return _text(content, "content")
    parts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise LetheError("a turn holds a part that is not text; only text can be read")
        parts.append(_text(part.get("text"), "content"))
    return "".join(parts)


def _text(value: Any, name: str) -> str:
    try:
        return value_as_text(value)
    except NotText as error:
        raise NotText(f"field {name!r} {error}")


def _as_list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise LetheError(f"field {name!r} holds no list of turns: {str(value)[:60]!r}")
    return value


def _tools(value: Any) -> list[Any] | None:
    """The tools of a record: a list, or a list written as JSON text."""
    return _objects(value, "tools")


def _objects(value: Any, name: str) -> list[Any] | None:
    """The objects of a field: a list, or a list written as JSON text; None if there are none."""
    if not value:
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise LetheError(f"field {name!r} is text but not JSON ({error})")
    _refuse_other_items(value, name)
    return value


def _refuse_other_items(value: Any, name: str) -> None:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise LetheError(f"field {name!r} holds no list of objects: {str(value)[:60]!r}")


def _functions(value: Any) -> list[Any] | None:
    """OpenAI's older `functions` as tools."""
    functions = _objects(value, "functions")
    if functions is None:
        return None
    tools = []
    for function in functions:
        if "name" not in function:
            raise LetheError(
                f"field 'functions' holds an object without a name: {str(function)[:60]!r}; if "
                "these are tools, call the field 'tools'"
            )
        tools.append({"type": "function", "function": function})
    return tools


def _calls(value: Any) -> list[dict[str, Any]]:
    """Calls of tools from a `function_call`: one object or several, or these as JSON text."""
    try:
        content = json.loads(value) if isinstance(value, str) else value
        calls = content if isinstance(content, list) else [content]
        return [
            {
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in calls
        ]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise LetheError(
            f"a function_call is not JSON with a name and arguments: {str(value)[:60]!r}"
        )
