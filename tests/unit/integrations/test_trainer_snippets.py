"""The files of a mixture load in the trainers, with the text and the loss mask that lethe has."""

import ast
import hashlib
import json
import shlex

import datasets
import numpy as np
import pytest
import yaml
from helpers import chats, tiny
from helpers.chats import FORMS, pool, tokenizer, write_records

from lethe.cli.application import main
from lethe.data.examples import write_upstream
from lethe.data.tokens import tokenise
from lethe.data.training_rows import read_new_data
from lethe.errors import LetheError
from lethe.files import write_text
from lethe.integrations.trainer_snippets import TRAINERS, MixtureFiles, snippet_files

trl = pytest.importorskip("trl")
# The label of a token without loss.
NO_LOSS = -100


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A file of chats in every form, mixed with a pool for every trainer."""
    root = tmp_path_factory.mktemp("mixtures")
    write_upstream(root / "pool.parquet", pool())
    for form in FORMS:
        chats = write_records(root / f"{form}.jsonl", form)
        arguments = ["--pool", str(root / "pool.parquet"), "--ratio", "0.3", "--for", "all"]
        assert main(["mix", str(chats), *arguments, "-o", str(root / form)]) == 0
    return root


def trl_dataset(config):
    """The data set that `trl sft --config` trains on."""
    from trl.scripts.utils import DatasetConfig, DatasetMixtureConfig, get_dataset

    sets = [DatasetConfig(**entry) for entry in config["datasets"]]
    return get_dataset(DatasetMixtureConfig(datasets=sets))["train"]


def test_a_folder_with_an_emoji_or_other_letters_has_its_own_name_in_every_file(tmp_path):
    folder = tmp_path / 'mix-é-😀 "quoted"'
    rows = {name: 1 for name in ("new.jsonl", "train_with_replay.jsonl")}
    rows |= {"plain/replay.messages.jsonl": 1, "plain/replay.chats.jsonl": 1}
    files = MixtureFiles(folder=folder, form="messages", rows=rows)

    def written(trainer, name):
        path = tmp_path / name
        write_text(path, snippet_files(trainer, files)[name])
        return path.read_text(encoding="utf-8")

    config = yaml.safe_load(written("trl", "trl.yaml"))
    assert config["datasets"][0]["data_files"] == f"{folder}/train_with_replay.jsonl"
    config = yaml.safe_load(written("axolotl", "axolotl.yaml"))
    names = [entry["path"] for entry in config["datasets"]]
    assert names == [f"{folder}/new.jsonl", f"{folder}/plain/replay.chats.jsonl"]
    config = yaml.safe_load(written("llama-factory", "llama_factory.yaml"))
    assert config["dataset_dir"] == str(folder)
    module = ast.parse(written("megatron-bridge", "megatron_bridge.py"))
    texts = [node.value for node in ast.walk(module) if isinstance(node, ast.Constant)]
    assert str(folder) in texts


@pytest.mark.parametrize("form", FORMS)
def test_trl_trains_on_the_text_and_the_loss_mask_that_lethe_has(folder, form, tmp_path):
    config = yaml.safe_load((folder / form / "trl.yaml").read_text())
    dataset = trl_dataset(config)
    lines = (folder / form / "train_with_replay.jsonl").read_text().splitlines()
    assert len(dataset) == len(lines) == 26
    reader = tokenizer()
    only_assistant = config.get("assistant_only_loss", False)
    trainer = trl.SFTTrainer(
        model=_model(len(reader)),
        args=trl.SFTConfig(
            output_dir=str(tmp_path),
            report_to=[],
            use_cpu=True,
            bf16=False,
            max_steps=1,
            max_length=None,
            save_strategy="no",
            assistant_only_loss=only_assistant,
            shuffle_dataset=False,
        ),
        train_dataset=dataset,
        processing_class=reader,
    )
    examples = read_new_data(folder / form / "train_with_replay.jsonl").examples
    prepared = trainer.train_dataset
    assert len(prepared) == len(examples)
    for row, example in zip(prepared, examples, strict=True):
        if not only_assistant:
            _check_without_template(reader, row, example)
            continue
        (tokens,) = tokenise(reader, [example], 4000).examples
        length = len(tokens.ids)
        mask = np.array(row["labels"]) != NO_LOSS
        assert row["input_ids"][:length] == tokens.ids
        # A single exchange ends with the end of its turn; the template marks a line break, too.
        assert reader.decode(row["input_ids"][length:]) in ("", "\n")
        assert np.array_equal(mask[:length], tokens.loss_mask)
    assert np.isfinite(trainer.train().training_loss)


def _check_without_template(reader, row, example):
    text = example.text
    if text is None:
        text = example.prompt + example.answer
        mask = np.array(row["labels"]) != NO_LOSS
        loss = reader.decode([i for i, m in zip(row["input_ids"], mask, strict=True) if m])
        assert loss.strip() == f"{example.answer}{reader.eos_token}".strip()
    assert reader.decode(row["input_ids"]) == f"{text}{reader.eos_token}"


def _model(size):
    model = tiny.model("llama", scale=1)
    model.resize_token_embeddings(size)
    return model


def load(path):
    return datasets.load_dataset("json", data_files=str(path), split="train")


def digest(rows):
    text = "\n".join(json.dumps(row, sort_keys=True) for row in rows)
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("form", FORMS)
def test_every_file_of_rows_loads_as_a_dataset_with_its_content(folder, form):
    files = sorted((folder / form).rglob("*.jsonl"))
    assert len(files) >= 6
    for path in files:
        written = [json.loads(line) for line in path.read_text().splitlines()]
        loaded = load(path)
        assert len(loaded) == len(written)
        assert digest(list(loaded)) == digest(written)


def test_axolotl_reads_chats_beside_plain_texts(folder):
    config = yaml.safe_load((folder / "messages/axolotl.yaml").read_text())
    kinds = [entry["type"] for entry in config["datasets"]]
    assert kinds == ["chat_template", "chat_template", "completion"]
    assert config["shuffle_merged_datasets"] is True
    counts = [len(load(entry["path"])) for entry in config["datasets"]]
    assert counts[0] == 20 and sum(counts) == 26
    for entry in config["datasets"]:
        field = entry.get("field_messages") or entry.get("field")
        assert load(entry["path"]).column_names == [field]
    config = yaml.safe_load((folder / "prompt_completion/axolotl.yaml").read_text())
    assert config["datasets"][0]["type"]["field_output"] == "completion"


@pytest.mark.parametrize("form", ["messages", "prompt_completion", "text"])
def test_llama_factory_finds_both_sets_and_their_columns(folder, form):
    info = json.loads((folder / form / "dataset_info.json").read_text())
    config = yaml.safe_load((folder / form / "llama_factory.yaml").read_text())
    assert config["mix_strategy"] == "concat"
    assert config["dataset"].split(",") == list(info)
    total = 0
    for entry in info.values():
        rows = load(folder / form / entry["file_name"])
        for column in entry["columns"].values():
            assert column in rows.column_names
        total += len(rows)
    assert total == 26


def test_llama_factory_reads_calls_of_tools_by_its_other_format(folder):
    files = MixtureFiles(folder=folder, form="messages", rows={}, tools=True)
    info = json.loads(snippet_files("llama-factory", files)["dataset_info.json"])
    for entry in info.values():
        assert entry["formatting"] == "openai"
        assert entry["columns"]["tools"] == "tools"
        assert entry["tags"]["function_tag"] == "function_call"


def test_trl_reads_the_tools_of_a_chat(folder, tmp_path):
    records = chats.records("messages")
    tool = {"name": "count_sacks", "description": "Counts.", "parameters": {"type": "object"}}
    for record in records:
        record["tools"] = [{"type": "function", "function": tool}]
    (tmp_path / "chats.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    arguments = ["--pool", str(folder / "pool.parquet"), "-o", str(tmp_path / "mixed")]
    assert main(["mix", str(tmp_path / "chats.jsonl"), *arguments, "--for", "trl"]) == 0
    dataset = trl_dataset(yaml.safe_load((tmp_path / "mixed/trl.yaml").read_text()))
    assert sorted(dataset.column_names) == ["messages", "tools"]
    assert sum("count_sacks" in json.dumps(row["tools"]) for row in dataset) == len(records)


def test_trl_reads_chats_with_calls_of_tools_only(folder, tmp_path):
    """Such a file has no column `tools`."""
    write_records(tmp_path / "train_with_replay.jsonl", "messages")
    files = MixtureFiles(folder=tmp_path, form="messages", rows={}, tools=True)
    config = yaml.safe_load(snippet_files("trl", files)["trl.yaml"])
    assert trl_dataset(config).column_names == ["messages"]


@pytest.mark.parametrize("form", ["messages", "prompt_completion", "text"])
def test_ms_swift_takes_every_row_of_both_files(folder, form):
    text = (folder / form / "ms_swift.sh").read_text()
    sets = shlex.split(text.split("--dataset ")[1])
    total = 0
    for entry in sets:
        path, count = entry.split("#")
        assert len(load(path)) == int(count)
        total += int(count)
    assert total == 26


def test_ms_swift_gets_a_path_with_any_characters(tmp_path):
    files = MixtureFiles(
        folder=tmp_path / "it's mine",
        form="messages",
        rows={"new.jsonl": 5, "plain/replay.messages.jsonl": 2},
        tools=False,
    )
    text = snippet_files("ms-swift", files)["ms_swift.sh"]
    first, *_ = shlex.split(text.split("--dataset ")[1])
    assert first == f"{files.path('new.jsonl')}#5"


def test_megatron_bridge_has_settings_that_are_python(folder):
    for form in ("messages", "prompt_completion"):
        text = (folder / form / "megatron_bridge.py").read_text()
        compile(text, "megatron_bridge.py", "exec")
        assert "source_weights = [1.0, 1.0]" in text
    assert not (folder / "text/megatron_bridge.py").exists()
    files = MixtureFiles(folder=folder, form="text", rows={})
    with pytest.raises(LetheError, match="--for jsonl"):
        snippet_files("megatron-bridge", files)


def test_an_unknown_trainer_is_named(folder):
    files = MixtureFiles(folder=folder, form="messages", rows={})
    with pytest.raises(LetheError, match=f"'x'; known: {', '.join(TRAINERS)}"):
        snippet_files("x", files)
    assert snippet_files("jsonl", files) == {}
