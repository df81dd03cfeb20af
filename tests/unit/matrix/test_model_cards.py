"""Two cards describe one model if its files or its commit, and how it is read, are the same."""

import pytest

from lethe.matrix.model_cards import same_model

FOLDER = {
    "path": "models/a",
    "revision": None,
    "trust_remote_code": False,
    "weights": {"model.safetensors": "1"},
    "files": {"config.json": "2"},
}


def test_models_of_the_hub_are_the_same_only_if_both_cards_name_the_commit():
    card = {"path": "org/model", "revision": None, "weights": {}, "commit": "0" * 40}
    assert same_model(card, dict(card))
    assert not same_model(card, card | {"commit": "1" * 40})
    without = {key: value for key, value in card.items() if key != "commit"}
    assert not same_model(card, without)
    assert not same_model(without, card)


def test_a_copied_folder_is_the_same_model():
    assert same_model(FOLDER, FOLDER | {"path": "elsewhere/b"})
    assert same_model(FOLDER | {"path": "elsewhere/b"}, FOLDER)


def test_a_branch_and_its_commit_are_the_same_model():
    branch = {"path": "org/model", "revision": "main", "weights": {}, "commit": "0" * 40}
    assert same_model(branch, branch | {"revision": "0" * 40})
    assert not same_model(branch, branch | {"path": "org/other"})


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": {"model.safetensors": "3"}},
        {"weights": {}},
        {"files": {"config.json": "3"}},
        {"chat_template": "{{ messages }}"},
        {"attention": "eager"},
        {"trust_remote_code": True},
    ],
)
def test_other_files_and_other_reading_are_another_model(changes):
    assert not same_model(FOLDER, FOLDER | changes)
    assert not same_model(FOLDER | changes, FOLDER)


def test_cards_of_earlier_versions_lack_files_and_settings():
    older = {"path": "models/a", "weights": FOLDER["weights"]}
    assert same_model(FOLDER, older)
    assert not same_model(older, FOLDER)
    assert same_model({}, {})
