import io
import json
import tarfile
import zipfile

import pytest

from lethe.data import bigbench
from lethe.data.examples import Example
from lethe.errors import LetheError

PACKAGE = "bigbench-1.0.0/bigbench/benchmark_tasks/"


def archive(folder, **tasks):
    path = folder / "bigbench.zip"
    with zipfile.ZipFile(path, "w") as members:
        for name, content in tasks.items():
            members.writestr(f"{name}/task.json", json.dumps(content))
    return path


def only(folder, **content) -> Example:
    (example,) = bigbench.read_bigbench(archive(folder, t=content), "t")
    return example


def test_a_target_may_be_a_string(tmp_path):
    result = only(tmp_path, examples=[{"input": "1 + 1", "target": "2"}])
    assert result == Example("Q: 1 + 1\nA:", "2")


def test_of_a_list_of_targets_the_first_is_taken(tmp_path):
    assert only(tmp_path, examples=[{"input": "x", "target": ["a", "b"]}]).answer == "a"
    assert only(tmp_path, examples=[{"input": "x", "target": []}]).answer == ""


def test_the_best_choice_is_the_answer_and_all_choices_are_in_the_prompt(tmp_path):
    record = {"input": "Which?", "target_scores": {"right": 1, "left": 0, "middle": 0.5}}
    result = only(tmp_path, examples=[record])
    assert result.answer == "right"
    assert result.prompt == "Q: Which?\n  choice: left\n  choice: middle\n  choice: right\nA:"


def test_of_tied_choices_the_first_by_name_is_taken_whatever_their_order(tmp_path):
    for scores in ({"b": 1, "a": 1, "c": 0}, {"a": 1, "c": 0, "b": 1}):
        assert only(tmp_path, examples=[{"input": "x", "target_scores": scores}]).answer == "a"


def test_choices_are_not_appended_where_the_task_says_so(tmp_path):
    record = {"input": "Which?", "target_scores": {"yes": 0, "no": 1}}
    result = only(tmp_path, append_choices_to_input=False, examples=[record])
    assert result == Example("Q: Which?\nA:", "no")


def test_a_task_brings_its_own_prefixes(tmp_path):
    result = only(
        tmp_path,
        task_prefix="Add the numbers.\n",
        example_input_prefix="\nSum: ",
        example_output_prefix="\nIs: ",
        example_choice_prefix="\n- ",
        examples=[{"input": "1 + 2", "target_scores": {"4": 0, "3": 1}}],
    )
    assert result == Example("Add the numbers.\nSum: 1 + 2\n- 3\n- 4\nIs:", "3")


@pytest.mark.parametrize("record", [{"input": ["x"], "target": "y"}, {"input": "x", "target": {}}])
def test_what_is_not_text_is_refused_with_task_and_field(tmp_path, record):
    with pytest.raises(LetheError, match="task 't': field '(in|tar).*' holds"):
        only(tmp_path, examples=[record])


def test_numbers_become_text(tmp_path):
    assert only(tmp_path, examples=[{"input": "x", "target": 7}]).answer == "7"


@pytest.mark.parametrize("record", [{"input": "x"}, {"target": "x"}])
def test_an_example_without_input_or_target_is_refused_with_its_task(tmp_path, record):
    with pytest.raises(LetheError, match="'t'"):
        only(tmp_path, examples=[record])


def test_passages_are_read_once_each_as_plain_text(tmp_path):
    paragraphs = [{"context": " One.\nTwo. "}, {"context": "Three."}, {"context": "One.\nTwo."}]
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as members:
        content = json.dumps({"data": [{"paragraphs": paragraphs}]})
        members.writestr("squad_shifts/news.json", content)
    result = list(bigbench.read_bigbench(path, "squad_shifts/news.json"))
    assert result == [Example(text="One.\nTwo."), Example(text="Three.")]
    assert list(bigbench.read_bigbench_as_text(path, "squad_shifts/news.json")) == result


def test_a_task_as_upstream_text_is_input_and_answer(tmp_path):
    path = archive(tmp_path, t={"examples": [{"input": "A tale.", "target": "Its end."}]})
    (result,) = bigbench.read_bigbench_as_text(path, "t")
    assert result == Example(text="Q: A tale.\nA:\nIts end.")


def test_an_unknown_task_is_named_with_those_that_are_near(tmp_path):
    path = archive(tmp_path, **{"arithmetic/2_digit": {}, "colour": {}})
    with pytest.raises(LetheError, match=r"'arithmetic/9_digit'.*near: \['arithmetic/2_digit'\]"):
        bigbench.read_bigbench(path, "arithmetic/9_digit")


def test_a_misspelled_task_is_named_with_the_one_that_is_meant(tmp_path):
    path = archive(tmp_path, **{"colour": {}, "tense": {}})
    with pytest.raises(LetheError, match=r"'tensee' with examples; near: \['tense'\]"):
        bigbench.read_bigbench(path, "tensee")
    with pytest.raises(LetheError, match=rf"'weather' with examples; .* -l {path} lists all"):
        bigbench.read_bigbench(path, "weather")


def package(path, **files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_extract_takes_what_carries_examples_and_nothing_else(tmp_path):
    task = json.dumps({"examples": [{"input": "x", "target": "y"}]}).encode()
    made = package(
        tmp_path / "p.tar.gz",
        **{
            f"{PACKAGE}a/task.json": task,
            f"{PACKAGE}g/sub/task.json": task,
            f"{PACKAGE}a/README.md": b"no",
            f"{PACKAGE}squad_shifts/data/news.json": b"{}",
            f"{PACKAGE}other/data.json": b"{}",
            "bigbench-1.0.0/setup.py": b"no",
            "bigbench-1.0.0/task.json": task,
        },
    )
    assert bigbench.extract(made, tmp_path / "out.zip") == 3
    with zipfile.ZipFile(tmp_path / "out.zip") as members:
        expected = {"a/task.json", "g/sub/task.json", "squad_shifts/data/news.json"}
        assert set(members.namelist()) == expected
    assert list(bigbench.read_bigbench(tmp_path / "out.zip", "g/sub")) == [Example("Q: x\nA:", "y")]


def test_the_same_package_gives_the_same_archive(tmp_path):
    made = package(tmp_path / "p.tar.gz", **{f"{PACKAGE}a/task.json": b"{}"})
    for name in ("one.zip", "two.zip"):
        bigbench.extract(made, tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_tasks_of_enormous_size_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(bigbench, "LARGEST_TASK", 100)
    files = {f"{PACKAGE}big/task.json": b" " * 100, f"{PACKAGE}small/task.json": b" " * 99}
    assert bigbench.extract(package(tmp_path / "p.tar.gz", **files), tmp_path / "out.zip") == 1


def test_a_truncated_package_is_refused_and_leaves_no_archive(tmp_path):
    path = package(tmp_path / "p.tar.gz", **{f"{PACKAGE}a/task.json": b"{}" * 5000})
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(LetheError, match=r"p\.tar\.gz: is damaged"):
        bigbench.extract(path, tmp_path / "out.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["p.tar.gz"]


@pytest.mark.parametrize("content", [None, b"", b"PK no zip", "cut", "other"])
def test_a_damaged_extract_is_refused_with_its_name(tmp_path, content):
    path = archive(tmp_path, t={"examples": [{"input": "x" * 500, "target": "y"}]})
    if content is None:
        path.unlink()
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    elif content == "other":
        path.write_bytes(path.read_bytes().replace(b"xxx", b"xyx", 1))
    else:
        path.write_bytes(content)
    with pytest.raises(LetheError, match=r"bigbench\.zip: the BIG-bench extract is damaged"):
        bigbench.read_bigbench(path, "t")


def test_another_package_is_refused_and_leaves_no_archive(tmp_path):
    made = package(tmp_path / "p.tar.gz", **{"other/file.txt": b"no"})
    with pytest.raises(LetheError, match=r"p\.tar\.gz: holds no BIG-bench task"):
        bigbench.extract(made, tmp_path / "out.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["p.tar.gz"]
