"""How a model's chat template writes a question and its answer.

Templates differ in the end of a turn (`<|im_end|>`, `<end_of_turn>`, `</s>`), in the text before
an answer (a header, a space, a closed thinking block) and in the turns that they accept. All of
this is read off a rendered conversation, so that training, scoring, generation and the probe use
the same tokens as the model's own chats.
"""

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lethe.errors import LetheError

# Stands for an answer when a conversation is rendered. No template changes it and no text holds it.
PLACEHOLDER = "Lethe0Answer0Placeholder"
# The turns of a conversation, and the functions that it may call, in the form of transformers.
Turns = Sequence[Mapping[str, Any]]
Tools = Sequence[Any] | None
_PROMPT = "Lethe0Prompt0Placeholder"
# A template is rendered for the first time within this time, or it is refused.
MOST_SECONDS = 10
# What to do about a template that does not fit.
WAY_OUT = (
    "set models.<name>.chat_template in the experiment or --chat-template of lethe score (none, a "
    ".jinja file, or a model whose template is used), or tokenizer.chat_template in your program"
)
# Text that begins a thinking block, and text that ends it.
THINKING = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "[THINK]": "[/THINK]",
}


@dataclass(frozen=True)
class Turn:
    """A question as the template writes it, ready for the answer.

    The rendered conversation is `prompt`, `lead`, the answer and `tail`. Loss begins with `lead`,
    which is empty or blank, because a model that continues `prompt` has to write it.
    """

    prompt: str
    lead: str
    tail: str


def has_template(tokenizer: Any) -> bool:
    """Whether prompts and answers go through a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def render_turn(tokenizer: Any, prompt: str) -> Turn:
    """Renders the conversation of one question and one answer around a placeholder.

    See `render_next_turn`.
    """
    return render_next_turn(tokenizer, [{"role": "user", "content": prompt}])


def render_next_turn(tokenizer: Any, turns: Turns, tools: Tools = None) -> Turn:
    """Renders a conversation and the assistant's next turn, around a placeholder.

    The prompt is the text that the template writes to make the model answer, plus the header or
    closed thinking block that it writes before a finished answer. A thinking block that the
    template only opens is not part of it: the answer would become part of the thoughts.

    Parameters
    ----------
    turns
        The turns before the answer.
    tools
        The functions that the model may call, as the template lists them.

    Raises
    ------
    LetheError
        If the template refuses the conversation or leaves the answer out, with the model's name
        and the template's reason.
    """
    answer = {"role": "assistant", "content": PLACEHOLDER}
    opening = render(tokenizer, turns, tools, add_generation_prompt=True)
    conversation = render(tokenizer, [*turns, answer], tools)
    before, separator, tail = conversation.rpartition(PLACEHOLDER)
    if not separator:
        raise LetheError(
            f"{_name(tokenizer)}: its chat template does not write the assistant's answer; "
            f"{WAY_OUT}"
        )
    prompt = "".join(str(turn.get("content")) for turn in turns)
    if before.startswith(opening):
        lead = before[len(opening) :]
        if not lead.strip() and _outside_thoughts(opening, prompt) == opening:
            return Turn(opening, lead, tail)
    elif not opening.startswith(before.rstrip()):
        question_only = render(tokenizer, turns, tools)
        if question_only == opening:
            # The template opens an answer after every conversation, finished or not. So the end
            # of the conversation is no end of the answer.
            return Turn(opening, "", "")
    before = _outside_thoughts(before, prompt)
    # A space before the answer is often one token with the answer's first word.
    text = before.rstrip(" ")
    return Turn(text, before[len(text) :], tail)


def _outside_thoughts(before: str, prompt: str) -> str:
    """Removes the beginning of a thinking block that the template opens but does not close."""
    for begin, end in THINKING.items():
        opened = before.count(begin) - prompt.count(begin)
        closed = before.count(end) - prompt.count(end)
        if opened > closed:
            before = before[: before.rindex(begin)]
    return before


def end_of_turn(tokenizer: Any, tail: str) -> list[int]:
    """Tokens that end an answer, read off the text that the template writes after it.

    They reach up to the first special token. Text without a special token is an end by itself; if
    there is only blank text, the tokenizer's own end token is used, because a model needs
    something to stop at.
    """
    special = special_tokens(tokenizer)
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    for position, token in enumerate(ids):
        if token in special:
            return ids[: position + 1]
    if tail.strip():
        return tokenizer(tail.rstrip(), add_special_tokens=False)["input_ids"]
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def stop_tokens(tokenizer: Any) -> list[int]:
    """Tokens at which generation stops: the end token, and the template's own end of a turn."""
    stops = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if has_template(tokenizer):
        end = end_of_turn(tokenizer, render_turn(tokenizer, _PROMPT).tail)
        # Answers may hold single tokens of an end that is ordinary text.
        if len(end) == 1 or (end and end[-1] in special_tokens(tokenizer)):
            stops.append(end[-1])
    return sorted(set(stops))


def special_tokens(tokenizer: Any) -> set[int]:
    """Special tokens, and added tokens that are not blank: some models add the end of a turn so."""
    special = set(tokenizer.all_special_ids)
    for token, added in getattr(tokenizer, "added_tokens_decoder", {}).items():
        if str(added).strip():
            special.add(token)
    return special


def render(
    tokenizer: Any, turns: Turns, tools: Tools = None, *, add_generation_prompt: bool = False
) -> str:
    """The text of a conversation; empty without a turn, which many templates refuse.

    Raises
    ------
    LetheError
        If the template refuses the conversation, with the model's name and the template's reason.
    """
    if not turns:
        return ""
    template = str(tokenizer.chat_template)
    roles = tuple(turn["role"] for turn in turns)
    # A template that ends once for these turns ends every time, but for loops over the prompt.
    case = (template, roles, bool(tools), add_generation_prompt)
    seconds = None if case in _rendered else MOST_SECONDS
    with _refusals_named(tokenizer, roles), _time_limit(seconds):
        text = tokenizer.apply_chat_template(
            list(turns),
            tools=tools or None,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    _rendered.add(case)
    return text


_rendered: set[tuple[str, tuple[str, ...], bool, bool]] = set()


class _Endless(Exception):
    """Rendering took too long."""

    def __str__(self) -> str:
        return f"it did not end within {MOST_SECONDS} seconds"


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Raises _Endless in this thread if the block takes longer, which stops a loop in Python."""
    if seconds is None:
        yield
        return
    thread = ctypes.c_ulong(threading.get_ident())
    lock = threading.Lock()
    finished = False

    def stop() -> None:
        with lock:
            if not finished:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_Endless))

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            finished = True
        timer.cancel()


def _name(tokenizer: Any) -> str:
    path = getattr(tokenizer, "name_or_path", "")
    return f"model {path!r}" if path else "a model without a name"


@contextmanager
def _refusals_named(tokenizer: Any, roles: Sequence[str]) -> Iterator[None]:
    """Turns every error of rendering into one that names the model and the key chat_template."""
    templates = tokenizer.chat_template
    if isinstance(templates, dict) and "default" not in templates:
        raise LetheError(
            f"{_name(tokenizer)}: has several chat templates ({', '.join(sorted(templates))}) and "
            f"none of them is the default; {WAY_OUT}"
        )
    try:
        yield
    except Exception as error:
        # A template is a program that came with the model; it can fail in any way.
        reason = str(error) or type(error).__name__
        raise LetheError(
            f"{_name(tokenizer)}: its chat template refused {_describe(roles)} ({reason}); "
            f"{WAY_OUT}"
        )


def _describe(roles: Sequence[str]) -> str:
    if tuple(roles) in ((), ("user",), ("user", "assistant")):
        return "a conversation of one user turn and one assistant turn, without a system turn"
    return f"a conversation of the turns {', '.join(roles)}"
