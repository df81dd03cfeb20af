"""The paper's experiments: tasks, splits and recipe; each source read; each architecture run."""

import csv

import pytest
import yaml
from helpers import paper, tiny
from helpers.experiment import ROOT

from lethe.config.data_settings import split_source
from lethe.config.loading import load_experiment
from lethe.data.sources import read_source, task_examples
from lethe.engine import models
from lethe.engine.reader import Reader
from lethe.measure.forgetting import Job, base_losses

FOLDER = ROOT / "experiments/paper"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if "released" not in path.stem)
FLAN_TEST = {6, 65, 18, 8, 60, 13, 37, 22, 30, 19, 64, 50, 25, 31, 32, 61, 16, 5, 53, 49}
SIZES = {"flan": 66, "tulu": 11, "dolly": 8, "mmlu": 57, "bbh": 27, "truthful_qa": 32}


def table(name):
    with (FOLDER / f"{name}.csv").open() as lines:
        return list(csv.DictReader(lines))


BBH = [line["name"] for line in table("instruct") if line["group"] == "bbh"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the experiments and what they want downloaded."""
    folder = tmp_path_factory.mktemp("paper")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    paper.downloads(folder, BBH)
    return folder


@pytest.fixture
def hub(place, tmp_path, monkeypatch):
    """The hub, with a few records for whatever task is asked for."""
    import datasets
    import huggingface_hub

    request = {}

    def load_dataset(path, name, split, revision):
        return datasets.Dataset.from_list(paper.records(path, name, split, request["where"]))

    def snapshot_download(path, **_options):
        folder = tmp_path / request["where"] / path
        if not folder.exists():
            paper.repository(path, folder, request["where"])
        return str(folder)

    monkeypatch.chdir(place)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return request


def experiment(name, folder):
    return load_experiment(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()), folder)


def test_nine_models_and_exact_match_are_shipped():
    assert [
        *("mpt-7b", "olmo-1b", "olmo-7b", "olmo-7b-instruct", "olmo-7b-instruct-em"),
        *("olmo2-13b", "olmo2-7b", "pythia-12b", "pythia-1b", "pythia-6.9b"),
    ] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_experiment_has_the_papers_tasks_and_recipe(name, place):
    result = experiment(name, place)
    instruct = name.startswith("olmo-7b-instruct")
    few = name.startswith(("pythia", "olmo2"))
    assert len(result.tasks) == (142 if instruct else 19 if few else 85)
    sizes = {group: 0 for group in SIZES} | {"olmo2_mix": 0}
    for task in result.tasks.values():
        sizes[task.group] += 1
    assert all(count in (0, SIZES.get(group, 18)) for group, count in sizes.items())
    recipe = result.recipe(name)
    assert (recipe.steps, recipe.lr, recipe.batch) == (100 if instruct else 1000, 2e-6, 8)
    assert recipe.group_steps == ({"olmo2_mix": 1000} if instruct else {})
    assert (recipe.warmup_steps, recipe.decay) == (10, "linear")
    in_shards = name in ("pythia-12b", "olmo2-13b")
    assert recipe.processes == (4 if in_shards else 1)
    assert recipe.optimizer == ("adamw" if in_shards else "paged_adamw_8bit")
    assert recipe.gradient_checkpointing
    assert result.settings.replay.ratio == (1 / 8 if instruct else 1 / 32)
    assert result.settings.replay.temperature == 0.1
    assert (result.settings.scoring.exact_match is not None) == name.endswith("em")
    assert result.settings.upstream.examples == (11000 if name == "olmo-7b-instruct" else 10000)


def test_the_papers_flan_rows_are_predicted_and_tulu_and_dolly_out_of_domain():
    lines = table("flan-tulu-dolly")
    assert {i for i, line in enumerate(lines) if line["split"] == "test"} == FLAN_TEST
    assert [line["split"] for line in lines[66:]] == ["ood"] * 19
    assert [line["name"] for line in table("tulu-dolly")] == [line["name"] for line in lines[66:]]


def test_the_instruct_rows_that_are_predicted_are_the_papers():
    held = {}
    for line in table("instruct"):
        held.setdefault(line["group"], []).append(line["split"])
    result = {group: [i for i, s in enumerate(of) if s == "test"] for group, of in held.items()}
    assert result["mmlu"] == sorted([30, 21, 43, 54, 9])
    assert result["bbh"] == sorted([0, 11, 14, 7, 4])
    assert result["truthful_qa"] == [0, 5, 10, 15, 20]
    assert result["olmo2_mix"] == [0, 4, 8, 12, 16]
    assert set(held["dolly"]) == {"ood"}


@pytest.mark.parametrize("name", NAMES)
def test_each_source_is_read_as_its_data_set_is_kept(name, place, hub):
    result = experiment(name, place)
    # One task of a group: they differ in name only.
    for task in {task.group: task for task in result.tasks.values()}.values():
        key, hub["where"] = split_source(task.source)
        source = result.settings.sources[key]
        train, held = task_examples(source, hub["where"], {"train": 8, "eval": 4}, 0, task.name)
        assert len(train) >= 6 and held, task
        assert not any(example.is_empty() or example.prompt is None for example in train + held)
    for text in result.settings.upstream.domains.values():
        key, hub["where"] = split_source(text)
        upstream = list(read_source(result.settings.sources[key], hub["where"], upstream=True))
        assert len(upstream) >= 9
        pairs = name.startswith("olmo-7b-instruct")
        assert all((example.answer is not None) == pairs for example in upstream)


TEMPLATE = (
    "{{ eos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.mark.parametrize(
    ("name", "architecture"),
    [("olmo-7b", "olmo"), ("olmo2-7b", "olmo2"), ("pythia-6.9b", "gpt_neox"), ("mpt-7b", "mpt")],
)
def test_a_row_of_each_architecture_is_measured_by_its_experiments_recipe(
    name, architecture, place, model_folders
):
    """Of the recipe only steps, rate and lengths are cut to what a tiny model can show."""
    result = experiment(name, place)
    cut = {"steps": 3, "lr": 1e-2, "warmup_steps": 1, "max_tokens": tiny.CONTEXT}
    recipe = result.recipe(name).model_copy(update=cut)
    scoring = result.settings.scoring.model_copy(update={"max_tokens": tiny.CONTEXT})
    card = model_folders[architecture] | {"chat_template": TEMPLATE}
    upstream = tiny.upstream(8)
    model, tokenizer = models.load(card, scoring.dtype)
    shared = {"model": card, "scoring": scoring.model_dump(mode="json")}
    base = base_losses(Reader(model, tokenizer, scoring), upstream, shared)
    job = Job(card, base, tiny.pairs(20, seed=1), tiny.pairs(6, seed=2), recipe, scoring)
    *_, row = job.run(upstream)
    assert row.about["steps"] == 3 and row.about["missing"] == row.about["eval_missing"] == 0
    assert abs(row.forgetting).max() > 0.01
    assert row.about["training_empty"] == 0
