from dataclasses import replace

import numpy as np
from helpers import findings as tiny_findings

from lethe.data.examples import Example, UpstreamExample, write_examples
from lethe.matrix.token_files import TokenLosses, write_token_file
from lethe.report import example_page
from lethe.report.example_browser import browser_data, choose_shown, compared_rows
from lethe.report.findings import read_findings
from lethe.report.report_page import render_page

SETTINGS = tiny_findings.SETTINGS


def losses(example_id: str, change: float = 1.0, size: int = 3) -> TokenLosses:
    before = np.full(size, 2, dtype=np.float16)
    before[0] = np.nan
    tokens = [f"{number}</script>" for number in range(size)]
    return TokenLosses(example_id, tokens, before, before + np.float16(change))


def test_examples_of_several_tasks_share_their_tokens_and_losses_before():
    stored = {
        "one": {"sums": [losses("a"), losses("b", 0.25)], "poems": [losses("b", -1)]},
        "two": {},
    }
    content = example_page.token_content(stored)
    assert content["examples"] == 2 and content["per_nat"] == 100
    one = content["models"]["one"]
    assert list(one["texts"]) == list(one["before"]) == ["a", "b"]
    assert one["before"]["b"] == [None, 200, 200]
    assert one["after"]["sums"] == {"a": [None, 300, 300], "b": [None, 225, 225]}
    assert one["after"]["poems"] == {"b": [None, 100, 100]}
    assert content["models"]["two"] == {"texts": {}, "before": {}, "after": {}}
    assert example_page.ids_with_tokens(stored) == {"a", "b"}


def test_the_page_holds_as_many_examples_per_task_as_fit():
    stored = {"one": {"sums": [losses("a", size=10), losses("b", size=10)]}, "two": {"sums": []}}
    stored["two"]["sums"] = [losses("a", size=10)]
    assert example_page.examples_per_task(stored, most_tokens=30) == 2
    assert example_page.examples_per_task(stored, most_tokens=29) == 1
    assert example_page.examples_per_task(stored, most_tokens=19) == 0
    assert example_page.examples_per_task({}) == 0


def test_training_texts_are_few_and_of_bounded_length():
    examples = [Example("1 + 1", "2"), Example(text="x" * 10_000), Example(text="third")]
    first, second = example_page.training_texts(examples)
    assert first == "1 + 1 → 2"
    assert len(second) < 700 and second.endswith("…")


def test_token_losses_and_training_examples_are_read_from_their_files(tmp_path):
    tables = tiny_findings.write_tables(tmp_path / "tables")
    tables["training"] = []
    for task in tiny_findings.TASKS:
        write_examples(tmp_path / f"{task}.parquet", [Example(f"say {task}", task)])
        tables["training"].append(str(tmp_path / f"{task}.parquet"))
    write_token_file(tmp_path / "tokens.parquet", [losses("a-00000")])
    files = {
        "one": {"sums": str(tmp_path / "tokens.parquet"), "poems": str(tmp_path / "absent")},
        "two": {"sums": str(tmp_path / "absent")},
    }
    findings = read_findings(tables, ("one", "two"), tiny_findings.TASKS, files)
    assert list(findings.tokens["one"]) == ["sums"] and findings.tokens["two"] == {}
    assert findings.training["poems"] == ["say poems → poems"]
    data = browser_data(findings, choose_shown(findings), threshold=0.2)
    assert data["training"]["null"] == ["say null → null"]
    assert data["tokens"]["models"]["one"]["after"]["sums"]["a-00000"] == [None, 300, 300]
    page = render_page(findings, {}, SETTINGS)
    # Texts of tokens cannot end the element that holds them.
    assert "0\\u003c/script>" in page and "0</script>" not in page


def test_nearest_examples_are_those_of_the_training_tasks(tmp_path):
    findings = tiny_findings.make_findings(tmp_path)
    z = findings.matrices["one"]
    np.testing.assert_array_equal(compared_rows(z, findings), z.values[:2])
    tasks = {name: replace(task, split="test") for name, task in findings.tasks.items()}
    assert compared_rows(z, replace(findings, tasks=tasks)) is z.values


def test_a_text_is_read_as_it_is():
    example = UpstreamExample("a", "m", "heldout", Example("why?", "so"))
    assert example_page.content_text(example.example) == "why? → so"


def test_an_empty_text_is_empty():
    examples = [Example(text=""), Example(prompt="a", answer="b")]
    assert example_page.training_texts(examples) == ["", "a → b"]
