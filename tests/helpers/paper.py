"""A few records of each of the paper's data sets, in the form that the hub and the authors use.

They take the place of the hub in tests.
"""

import gzip
import json
from pathlib import Path

import pyarrow as pa

TULU = (
    "open_orca",
    "oasst1",
    "lima",
    "code_alpaca",
    "gpt4_alpaca",
    "cot",
    "science",
    "flan_v2",
    "sharegpt",
    "hard_coded",
    "wizardlm",
)
RECORDS = 24


def turns(number: int) -> list[dict]:
    return [
        {"role": "system", "content": "You are helpful."},
        {"role": "user", "content": f"Question {number}?"},
        {"role": "assistant", "content": f"Answer {number}."},
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "No more."},
    ]


def question(subject: str, number: int) -> dict:
    choices = [f"{number}{letter}" for letter in "abcd"]
    return {"question": f"Q{number}", "subject": subject, "choices": choices, "answer": number % 4}


def tulu(_part: str) -> list[dict]:
    lines = []
    for name in TULU:
        # Science joins several data sets, whose names follow after a dot.
        dataset = "science.evidence" if name == "science" else name
        for i in range(RECORDS):
            lines.append({"dataset": dataset, "id": f"{dataset}_{i}", "messages": turns(i)})
    return lines


def dolly(category: str) -> list[dict]:
    common = {"category": category, "response": "It is so."}
    contexts = ["", "A tale."]
    return [
        {**common, "instruction": f"Say {i}.", "context": contexts[i % 2]} for i in range(RECORDS)
    ]


def mmlu(subject: str, split: str) -> list[dict]:
    numbers = {"dev": range(0, 5), "validation": range(10, 18), "test": range(20, 40)}[split]
    return [question(subject, number) for number in numbers]


def truthful_qa(category: str) -> list[dict]:
    common = {"type": "Adversarial", "correct_answers": ["A"], "incorrect_answers": ["B"]}
    lines = []
    for i in range(6):
        line = {"category": f"{category}: Other", "question": f"Q{i}", "best_answer": f"A{i}"}
        lines.append(common | line)
    return lines


def olmo2_mix(source: str) -> list[dict]:
    return [{"id": str(i), "messages": turns(i), "source": source} for i in range(RECORDS)]


def records(path: str, name: str | None, split: str, where: str) -> list[dict]:
    """The records of the data set on the hub that has the part `where`."""
    if path == "cais/mmlu":
        return {"all": mmlu}[name](where, split)
    datasets = {
        ("allenai/tulu-v2-sft-mixture", None, "train"): tulu,
        ("databricks/databricks-dolly-15k", None, "train"): dolly,
        ("truthfulqa/truthful_qa", "generation", "validation"): truthful_qa,
        ("allenai/tulu-3-sft-olmo-2-mixture", None, "train"): olmo2_mix,
    }
    return datasets[path, name, split](where)


def repository(path: str, folder: Path, where: str) -> None:
    """Writes the files of a repository on the hub that the task `where` reads."""
    documents = []
    for i in range(9):
        text = f"{i} {'A document. ' * 20}"
        documents.append(json.dumps({"text": text, "meta": {"pile_set_name": "Pile-CC"}}))
    lines = "\n".join(documents)
    if path == "Muennighoff/flan":
        pairs = [{"inputs": f"{i}?", "targets": "yes", "task": where} for i in range(RECORDS)]
        (folder / "train").mkdir(parents=True)
        name = folder / f"train/{where}_train.jsonl"
        name.write_text("\n".join(map(json.dumps, pairs)))
    elif path == "monology/pile-uncopyrighted":
        (folder / "train").mkdir(parents=True)
        with pa.output_stream(str(folder / "train/00.jsonl.zst"), compression="zstd") as file:
            file.write(lines.encode())
    elif path == "togethercomputer/RedPajama-Data-1T-Sample":
        folder.mkdir(parents=True)
        (folder / "arxiv_sample.jsonl").write_text(lines)
    else:
        raise KeyError(path)


def downloads(folder: Path, bbh: list[str]) -> None:
    """Writes the files that a user downloads beforehand: Dolma, olmo-mix, BIG-Bench Hard."""
    texts = [
        {"id": str(i), "text": f"{i} text", "source": "cc", "added": "", "metadata": {"a": i}}
        for i in range(9)
    ]
    lines = "\n".join(map(json.dumps, texts)).encode()
    for name in ("dolma-v1_6-sample/v1_5r2_sample-0000", "olmo-mix-1124/data/wiki/wiki-0000"):
        path = folder / "data" / f"{name}.json.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(lines))
    for part in ("bbh", "cot-prompts"):
        (folder / "data/BIG-Bench-Hard" / part).mkdir(parents=True)
    questions = [{"input": f"{i} is?", "target": "(A)"} for i in range(RECORDS)]
    for task in bbh:
        path = folder / "data/BIG-Bench-Hard"
        (path / f"bbh/{task}.json").write_text(json.dumps({"canary": "c", "examples": questions}))
        (path / f"cot-prompts/{task}.txt").write_text("canary\n-----\nSolve.\n\nQ: 1\nA: (A)\n")
