"""Rows of one Z never come from two models, and files that are no whole model are named."""

import json
import logging
import os
import shutil

import pytest
from helpers import tiny

from lethe.engine import models
from lethe.errors import LetheError
from lethe.matrix.model_cards import same_model


@pytest.fixture
def folder(model_folders, tmp_path):
    """A copy of a model's folder that a test may change."""
    return shutil.copytree(model_folders["llama"]["path"], tmp_path / "mine")


def test_a_card_holds_the_hash_of_every_file_that_defines_the_model(folder):
    (folder / "README.md").write_text("not part of the model")
    card = models.card(str(folder))
    assert list(card["weights"]) == ["model.safetensors"]
    expected = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert expected <= set(card["files"])
    assert "README.md" not in card["files"]
    assert models.card(str(folder)) == card


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", None),
        ("tokenizer.json", "{}"),
        ("config.json", "{}"),
        ("generation_config.json", "{}"),
        ("chat_template.jinja", "{{ messages[0].content }}"),
        ("more.safetensors", None),
    ],
)
def test_files_replaced_or_added_under_the_card_are_refused_by_name(folder, name, content):
    card = models.card(str(folder))
    if content is None:
        tiny.model("llama", seed=7).save_pretrained(folder.parent / "other")
        shutil.copy(folder.parent / "other/model.safetensors", folder / name)
    else:
        (folder / name).write_text(content)
    with pytest.raises(LetheError) as caught:
        models.load(card)
    assert f"model {folder}: its weights, settings or tokenizer" in str(caught.value)
    assert name in str(caught.value)
    assert "delete" not in str(caught.value)


def test_a_file_that_is_gone_is_refused_by_name(folder):
    card = models.card(str(folder))
    (folder / "generation_config.json").unlink()
    with pytest.raises(LetheError, match=r"generation_config\.json is missing"):
        models.load(card)


def test_a_folder_that_is_gone_is_never_looked_for_on_the_hub(folder):
    card = models.card(str(folder))
    shutil.rmtree(folder)
    with pytest.raises(LetheError, match="the folder that its card describes is missing"):
        models.load(card)


def test_a_folder_that_was_copied_or_touched_is_the_same_model(folder):
    card = models.card(str(folder))
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    models.load(card)
    moved = shutil.copytree(folder, folder.parent / "elsewhere")
    models.load(card | {"path": str(moved)})


def test_cards_without_hashes_of_settings_are_accepted_with_a_sentence(folder, caplog):
    """As model.json was written by earlier versions; weights are compared nevertheless."""
    card = models.card(str(folder))
    older = {key: value for key, value in card.items() if key != "files"}
    with caplog.at_level(logging.INFO, logger="lethe"):
        models.load(older)
    assert "written by an earlier version of lethe" in caplog.text
    assert same_model(card, older)
    assert not same_model(older, card)
    assert not same_model(card, older | {"weights": {"model.safetensors": "0"}})
    other = {"files": card["files"] | {"config.json": "0"}}
    assert not same_model(card, card | other)
    tiny.model("llama", seed=7).save_pretrained(folder)
    with pytest.raises(LetheError, match=r"model\.safetensors has other content"):
        models.load(older)


def test_an_adapter_is_named_with_its_base_model(folder):
    settings = {"base_model_name_or_path": "org/base", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    for action in (models.card, lambda path: models.load({"path": path})):
        with pytest.raises(LetheError, match=r"holds an adapter .*org/base.*merge_and_unload"):
            action(str(folder))


def test_a_pointer_of_git_lfs_is_named(folder):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4242\n"
    (folder / "model.safetensors").write_text(pointer)
    with pytest.raises(LetheError, match=r"model\.safetensors: this is a Git LFS pointer.*pull"):
        models.card(str(folder))


@pytest.mark.parametrize("cut", [-1, 100, 4, 0])
def test_weights_that_were_cut_off_are_named_with_their_size(folder, cut):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(LetheError, match=r"model\.safetensors: .* bytes.*cut"):
        models.card(str(folder))


def test_a_missing_shard_is_named(folder):
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}
    index = json.dumps({"weight_map": shards})
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(LetheError, match=r"1 shard.*model-00001-of-00002\.safetensors"):
        models.card(str(folder))
