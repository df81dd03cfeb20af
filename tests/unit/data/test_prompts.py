"""The paper's prompts, from records of each data set's true schema."""

import json

import datasets
import pytest
from pydantic import TypeAdapter, ValidationError

from lethe.config.data_settings import Source
from lethe.data.examples import Example
from lethe.data.sources import read_source, task_examples
from lethe.errors import LetheError


def source(**settings):
    return TypeAdapter(Source).validate_python(settings)


def saved(folder, splits, **settings):
    parts = {name: datasets.Dataset.from_list(rows) for name, rows in splits.items()}
    datasets.DatasetDict(parts).save_to_disk(folder / "saved")
    return source(kind="saved", path=str(folder / "saved"), **settings)


def turns(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def test_tulu_is_grouped_by_the_beginning_of_dataset_and_gives_the_first_exchange(tmp_path):
    rows = [
        {
            "dataset": "science.evidence_inference",
            "id": "science_0",
            "messages": turns(
                ("system", "Be brief."),
                *[("user", " Q1 "), ("assistant", "A1\n"), ("user", "Q2"), ("assistant", "A2")],
            ),
        },
        {"dataset": "science", "id": "1", "messages": turns(("user", "Q"), ("assistant", "A"))},
        {"dataset": "scienceless", "id": "2", "messages": turns(("user", "x"))},
        {"dataset": "sharegpt", "id": "3", "messages": turns(("assistant", "first"))},
        {"dataset": "sharegpt", "id": "4", "messages": turns(("user", "alone"))},
    ]
    tulu = {"format": "messages", "by": "dataset", "by_until": "."}
    data_source = saved(tmp_path, {"train": rows}, **tulu)
    assert list(read_source(data_source, "science")) == [Example("Q1", "A1"), Example("Q", "A")]
    # Without a question or an answer nothing is left to learn: such examples are dropped.
    assert [example.is_empty() for example in read_source(data_source, "sharegpt")] == [True, True]
    with pytest.raises(LetheError, match="no record with dataset = 'lima'"):
        list(read_source(data_source, "lima"))


def test_dolly_puts_the_context_first_where_there_is_one(tmp_path):
    common = {"instruction": "Who?", "response": "She.", "category": "closed_qa"}
    rows = [{**common, "context": "A tale."}, {**common, "context": ""}]
    data_source = saved(tmp_path, {"train": rows}, format="dolly", by="category")
    result = list(read_source(data_source, "closed_qa"))
    assert result == [Example("Context: A tale.\n\nWho?", "She."), Example("Who?", "She.")]


def question(text, answer, subject="anatomy"):
    choices = ["hand", "foot", "knee", "ear"]
    return {"question": text, "subject": subject, "choices": choices, "answer": answer}


MMLU = {"format": "mmlu", "name": "all", "by": "subject", "shots_split": "dev"}


def test_mmlu_stands_after_five_solved_questions_and_is_answered_in_text(tmp_path):
    splits = {
        "dev": [question("other", 0, "virology"), *[question(f"d{i}", i % 4) for i in range(6)]],
        "validation": [question("v0", 3)],
        "test": [question("t0", 1), question("t1", 2)],
    }
    splits["validation"] = [question("v0", 3)]
    data_source = saved(tmp_path, splits, split="validation", eval_split="test", **MMLU)
    options = "\nOPTIONS:\n - hand\n- foot\n- knee\n- ear\nA: "
    solved = zip("01234", ["hand", "foot", "knee", "ear", "hand"], strict=True)
    shots = "".join(f"\n\nQ: d{i}{options}{answer}" for i, answer in solved)
    head = "The following are multiple choice questions (with answers) about anatomy. "
    [result] = read_source(data_source, "anatomy")
    assert result == Example(f"{head}{shots}\n\nQ: v0{options}", "ear")
    train, held = task_examples(data_source, "anatomy", {"train": 9, "eval": 9}, 0, "anatomy")
    assert train == [result] and sorted(e.answer for e in held) == ["foot", "knee"]
    assert all(f"{head}{shots}\n\nQ: t" in example.prompt for example in held)


def test_an_answer_that_is_none_of_the_choices_is_refused(tmp_path):
    data_source = saved(tmp_path, {"dev": [question("d", 0)], "train": [question("q", 4)]}, **MMLU)
    with pytest.raises(LetheError, match="anatomy: answer 4 is no number of one of the 4 choices"):
        list(read_source(data_source, "anatomy"))


def test_bbh_stands_after_the_examples_of_its_prompt_file(tmp_path):
    (tmp_path / "bbh").mkdir()
    (tmp_path / "cot").mkdir()
    content = {"canary": "c", "examples": [{"input": "not True is", "target": "False"}]}
    (tmp_path / "bbh/boolean_expressions.json").write_text(json.dumps(content))
    prompt = "canary GUID\n-----\nEvaluate.\n\nQ: True\nA: So the answer is True.\n"
    (tmp_path / "cot/boolean_expressions.txt").write_text(prompt)
    folders = {"folder": str(tmp_path / "bbh"), "prompts": str(tmp_path / "cot")}
    data_source = source(kind="files", format="bbh", **folders)
    [result] = read_source(data_source, "boolean_expressions.json")
    solved = "Evaluate.\n\nQ: True\nA: So the answer is True.\n"
    request = "\nQ: not True is\nA: The short answer is: "
    assert result == Example(solved + request, "False")
    assert data_source.reads("boolean_expressions.json")[1].endswith("cot/boolean_expressions.txt")
    for content, message in (("a\nb\n", "nothing after the second line"), (None, "not readable")):
        path = tmp_path / "cot/boolean_expressions.txt"
        path.unlink() if content is None else path.write_text(content)
        with pytest.raises(LetheError, match=message):
            list(read_source(data_source, "boolean_expressions.json"))


def test_a_turn_may_be_a_list_of_parts_that_are_text(tmp_path):
    parts = [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Two"}]
    (tmp_path / "t.jsonl").write_text(json.dumps({"messages": turns}))
    data_source = source(kind="files", folder=str(tmp_path), format="messages")
    assert list(read_source(data_source, "t.jsonl")) == [Example("How many?", "Two")]


def test_truthful_qa_is_grouped_before_the_colon_and_evaluated_on_what_it_trains_on(tmp_path):
    common = {"type": "Adversarial", "correct_answers": ["a"], "incorrect_answers": ["b"]}
    rows = [
        {**common, "category": category, "question": f"Q{i}", "best_answer": f"A{i}"}
        for i, category in enumerate(["Indexical Error: Time", "Indexical Error: Other", "Law"])
    ]
    data_source = saved(
        tmp_path,
        {"validation": rows},
        **{"split": "validation", "eval_split": "validation"},
        **{"by": "category", "by_until": ":", "prompt": "{question}", "answer": "{best_answer}"},
    )
    sizes = {"train": 9, "eval": 9}
    train, held = task_examples(data_source, "Indexical Error", sizes, 0, "Indexical_Error")
    assert set(train) == set(held) == {Example("Q0", "A0"), Example("Q1", "A1")}


def test_flan_is_a_file_a_task_of_the_hubs_repository(tmp_path, monkeypatch):
    import huggingface_hub

    for part in ("train", "validation"):
        (tmp_path / part).mkdir()
        record = {"inputs": f"{part}?", "targets": "yes", "task": "rte_10templates"}
        (tmp_path / part / f"rte_10templates_{part}.jsonl").write_text(json.dumps(record))
    request = {}

    def snapshot_download(path, **options):
        request.update(options, path=path)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    fields = {"prompt": "{inputs}", "answer": "{targets}", "revision": "abc"}
    files = {f"{key}files": f"{part}/{{where}}_{part}.jsonl" for key, part in PARTS}
    data_source = source(kind="hub", path="Muennighoff/flan", **fields, **files)
    assert list(read_source(data_source, "rte_10templates")) == [Example("train?", "yes")]
    expected = {"path": "Muennighoff/flan", "repo_type": "dataset", "revision": "abc"}
    assert request == expected | {"allow_patterns": ["train/rte_10templates_train.jsonl"]}
    sizes = {"train": 9, "eval": 9}
    _, held = task_examples(data_source, "rte_10templates", sizes, 0, "rte")
    assert held == [Example("validation?", "yes")]
    with pytest.raises(LetheError, match="has no file train/gone_train.jsonl"):
        list(read_source(data_source, "gone"))


PARTS = (("", "train"), ("eval_", "validation"))


def test_a_repository_that_cannot_be_had_is_named(monkeypatch):
    import huggingface_hub

    def snapshot_download(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    data_source = source(kind="hub", path="org/data", files="*.jsonl")
    message = r"org/data: .*jsonl cannot be fetched: LocalEntryNotFoundError: offline"
    with pytest.raises(LetheError, match=message):
        list(read_source(data_source, ""))


def documents(folder, texts, **settings):
    """As Dolma keeps them: text beside an id and where it is from, JSON lines."""
    lines = [json.dumps({"id": str(i), "source": "s", "text": t}) for i, t in enumerate(texts)]
    (folder / "v1_5r2_sample-0000.json").write_text("\n".join(lines[::2]))
    (folder / "v1_5r2_sample-0001.json").write_text("\n".join(lines[1::2]))
    data_source = source(kind="files", folder=str(folder), text="{text}", **settings)
    return [example.text for example in read_source(data_source, "*.json")]


def test_documents_that_are_too_short_are_left_out_before_the_first_are_taken(tmp_path):
    texts = ["x" * 100, "a" * 101, "short", "b" * 101, "c" * 101]
    assert documents(tmp_path, texts, longer_than=100, first=1) == ["c" * 101]
    assert documents(tmp_path, texts, longer_than=100) == ["c" * 101, "a" * 101, "b" * 101]


def test_a_sample_is_always_the_same_and_each_document_as_likely(tmp_path):
    texts = [f"text {i}" for i in range(60)]
    drawn = documents(tmp_path, texts, sample=20)
    assert drawn == documents(tmp_path, texts, sample=20)
    assert len(set(drawn)) == 20 and set(drawn) <= set(texts)
    # Neither the first ones nor the last.
    assert 3 < sum(int(text.split()[1]) < 30 for text in drawn) < 17
    assert len(documents(tmp_path, texts, sample=100)) == 60


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "files", "folder": "f", "format": "bbh"}, "format bbh .* the key prompts"),
        ({"kind": "hub", "path": "p", "format": "mmlu"}, "format mmlu .* the key shots_split"),
        ({"kind": "hub", "path": "p", "format": "dolly", "text": "{x}"}, "remove text"),
        ({"kind": "hub", "path": "p", "first": 1, "sample": 1}, "give one of them"),
        ({"kind": "hub", "path": "p", "eval_files": "x"}, "eval_files goes with files"),
        ({"kind": "saved", "path": "p", "files": "x"}, "files needs kind hub"),
        ({"kind": "hub", "path": "p", "files": "x", "by": "y"}, "files needs kind hub"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        source(**settings)


@pytest.mark.parametrize(
    ("format", "record", "message"),
    [
        ("messages", {"text": "x"}, "no field 'messages'"),
        ("messages", {"messages": ["x"]}, "not as its format wants it"),
        ("dolly", {"instruction": "x"}, "no field 'response'"),
        ("dolly", {"instruction": ["x"], "response": "y"}, "field 'instruction' holds a list"),
        (
            "messages",
            {"messages": [{"role": "user", "content": {"a": 1}}]},
            "field 'messages' holds an object",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
            "a part of a turn that is not text",
        ),
    ],
)
def test_a_record_of_another_form_is_refused_with_the_task(tmp_path, format, record, message):
    (tmp_path / "t.jsonl").write_text(json.dumps(record))
    data_source = source(kind="files", folder=str(tmp_path), format=format)
    with pytest.raises(LetheError, match=f"t.jsonl: .*{message}"):
        list(read_source(data_source, "t.jsonl"))
