"""Small files of chats in every form, and a tokenizer with a chat template that marks answers."""

import json
import re
from pathlib import Path

from helpers import tiny
from lethe.data.examples import Example, UpstreamExample

FORMS = ("messages", "sharegpt", "alpaca", "prompt_completion", "text")
SPECIAL = re.compile(r"<\|[^|<>]+\|>")


def tokenizer(name: str = "qwen3_instruct_2507_training"):
    """The tiny tokenizer with a template of trl."""
    import trl

    made = tiny.tokenizer()
    path = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    template = path.read_text("utf-8")
    special = sorted(set(SPECIAL.findall(template)))
    made.add_special_tokens({"additional_special_tokens": special})
    made.chat_template = template
    return made


def records(form: str, count: int = 20) -> list[dict]:
    """Records of a fine-tune; every second conversation has a system turn and two exchanges."""
    made = []
    for number in range(count):
        question = f"How many sacks on day {number}?"
        answer = f"{number} sacks."
        if form == "text":
            made.append({"text": f"On day {number} the miller brought {answer}"})
        elif form == "prompt_completion":
            made.append({"prompt": f"Q: {question}\nA:", "completion": f" {answer}"})
        elif form == "alpaca":
            made.append({"instruction": question, "input": f"day: {number}", "output": answer})
        else:
            turns = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            if number % 2:
                later = {"role": "user", "content": "And the ferry?"}
                end = {"role": "assistant", "content": f"One more: {number + 1}."}
                turns = [{"role": "system", "content": "Be short."}, *turns, later, end]
            if form == "sharegpt":
                names = {"user": "human", "assistant": "gpt", "system": "system"}
                shared = [{"from": names[t["role"]], "value": t["content"]} for t in turns]
                made.append({"id": number, "conversations": shared})
            else:
                made.append({"messages": turns})
    return made


def write_records(path: Path, form: str, count: int = 20) -> Path:
    """Writes them as lines of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(record) for record in records(form, count)))
    return path


def pool(count: int = 40) -> list[UpstreamExample]:
    """Plain texts, pairs and conversations; every fourth is held out."""
    from lethe.data.conversations import ChatReader

    made = []
    for number, text in enumerate(tiny.sentences(count)):
        turns = [
            {"role": "system", "content": "Tell a tale."},
            {"role": "user", "content": f"Begin with {number}."},
            {"role": "assistant", "content": text},
        ]
        kinds = {
            "books": Example(text=text),
            "facts": Example(f"What is {number}?", text),
            "talks": ChatReader()({"messages": turns}),
        }
        domain = list(kinds)[number % 3]
        split = "heldout" if number % 4 == 3 else "replayable"
        made.append(UpstreamExample(f"{domain}-{number:05d}", domain, split, kinds[domain]))
    return made
