import json
from dataclasses import replace

import numpy as np
import pytest
from helpers import findings as tiny_findings

from lethe.matrix.forgetting_matrix import Matrix
from lethe.matrix.token_files import TokenLosses
from lethe.report import example_browser


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    return tiny_findings.make_findings(tmp_path_factory.mktemp("findings"))


def test_the_browser_has_every_example_with_its_text_and_forgetting(findings):
    bases = {"one": {"a-00000": 2.5}}
    with_bases = replace(findings, base_losses=bases)
    shown = example_browser.choose_shown(with_bases)
    data = example_browser.browser_data(with_bases, shown, threshold=0.3)
    assert [example["id"] for example in data["examples"]] == findings.matrices["one"].example_ids
    assert data["examples"][0]["text"] == f"{tiny_findings.SCRIPT} 0"
    assert data["examples"][0]["split"] == "heldout"
    assert data["tasks"]["two"] == list(tiny_findings.TASKS)
    assert data["base_loss"]["one"][:2] == [2.5, None]
    for model, z in findings.matrices.items():
        for number, values in enumerate(data["forgetting"][model]):
            measured = np.array([np.nan if value is None else value for value in values])
            np.testing.assert_allclose(measured, z.values[:, number], atol=1e-4)


def test_texts_cannot_end_the_element_that_holds_them(findings):
    shown = example_browser.choose_shown(findings)
    browser = example_browser.make_browser(findings, shown, threshold=0.3)
    assert "<" not in browser.data
    assert tiny_findings.SCRIPT in json.loads(browser.data)["examples"][0]["text"]
    assert "</script" not in browser.script.lower()
    assert browser.script_hash.startswith("sha256-")


def test_of_many_examples_the_extreme_ones_and_those_with_tokens_are_shown(findings, monkeypatch):
    monkeypatch.setattr(example_browser, "MOST_OF_A_KIND", 3)
    values = np.arange(40, dtype=float).reshape(2, 20)
    values[:, 7] = np.nan
    z = Matrix(values, ["a", "b"], [f"x-{i}" for i in range(20)])
    many = replace(findings, matrices={"one": z})
    shown = example_browser.choose_shown(many)
    assert len(shown) == len(set(shown)) == 9 and shown == sorted(shown)
    # The column without values counts as 0, which is the least.
    assert {0, 1, 7, 17, 18, 19} <= set(shown)
    assert example_browser.choose_shown(many) == shown
    hidden = next(number for number in range(20) if number not in shown)
    losses = TokenLosses(
        example_id=f"x-{hidden}",
        tokens=["word"],
        before=np.ones(1, np.float16),
        after=np.ones(1, np.float16),
    )
    with_tokens = replace(many, tokens={"one": {"a": [losses]}})
    assert example_browser.choose_shown(with_tokens) == sorted([*shown, hidden])
    few = Matrix(values[:, :9], ["a", "b"], z.example_ids[:9])
    assert example_browser.choose_shown(replace(findings, matrices={"one": few})) == list(range(9))


def test_neighbours_are_forgotten_by_the_same_tasks():
    rng = np.random.default_rng(0)
    profiles = rng.normal(size=(2, 6))
    kinds = np.arange(20) % 2
    values = profiles[kinds].T * rng.uniform(0.5, 2, 20) + 0.01 * rng.normal(size=(6, 20))
    neighbours = example_browser.find_neighbours(values, list(range(20)))
    for number, nearest in enumerate(neighbours):
        assert len(nearest) == 5 and number not in nearest
        assert {kinds[i] for i in nearest} == {kinds[number]}
    assert example_browser.find_neighbours(values[:, :1], [0]) == [[]]


def test_an_own_matrix_has_no_texts(tmp_path):
    imported = tiny_findings.make_findings(tmp_path, imported=True)
    data = example_browser.browser_data(imported, range(12), threshold=0.5)
    assert {example["text"] for example in data["examples"]} == {""}
    assert data["base_loss"] == {}
