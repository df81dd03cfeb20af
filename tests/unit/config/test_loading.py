import copy
import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from helpers.experiment import ROOT
from pydantic import TypeAdapter, ValidationError

from lethe.config.checks import source_problems
from lethe.config.data_settings import Source
from lethe.config.loading import load_experiment
from lethe.config.model_settings import Recipe
from lethe.config.replay_settings import Replay
from lethe.config.settings import number_of
from lethe.config.yaml_file import read_yaml
from lethe.errors import ExperimentError

SCRATCH = {"source": "scratch", "architecture": "olmo"}


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "tasks.csv").write_text(
        "name,group,source,split\n"
        "a,one,bigbench:a,train\nb,one,bigbench:b,train\nc,two,bigbench:c,test\n"
    )
    config = yaml.safe_load(
        """
        experiment: tiny
        tasks: tasks.csv
        sources: {bigbench: {kind: bigbench}, local: {kind: files, folder: texts},
                  saved: {kind: saved, path: gone}}
        upstream: {examples: 200, domains: {news: "bigbench:gem/xsum"}}
        models: {olmo: {source: scratch, architecture: olmo, recipe: {lr: 0.1}}}
        """
    )
    return config, tmp_path


def problems(config, folder):
    with pytest.raises(ExperimentError) as caught:
        load_experiment(config, folder)
    return str(caught.value)


def test_a_good_experiment_loads_with_its_tasks_and_the_models_own_recipe(experiment):
    loaded = load_experiment(*experiment)
    assert loaded.names("train") == ["a", "b"]
    assert loaded.names() == ["a", "b", "c"]
    assert loaded.recipe("olmo").lr == 0.1
    assert loaded.settings.recipe.lr == 2e-6


def test_every_problem_is_in_one_message(experiment):
    config, folder = experiment
    config = copy.deepcopy(config)
    config["recipe"] = {"stepz": 3, "lr": -1}
    config["upstream"]["heldout"] = 1.5
    (folder / "tasks.csv").write_text(
        "name,group,source,split\na,g,bigbench:a,train\na,g,x:b,dev\n../c,g,bigbench:c,test\n"
    )
    message = problems(config, folder)
    for part in ("recipe.stepz", "'steps'", "recipe.lr", "-1", "upstream.heldout", "1.5"):
        assert part in message
    for part in ("line 3", "twice", "'dev'", "'../c'"):
        assert part in message


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"models": {}}, "models, matrix"),
        ({"matrix": {"path": "z.npy", "layout": "tasks_in_rows"}}, "z.npy"),
        ({"matrix": {"path": "z.npy"}}, "matrix.layout"),
        ({"upstream": None}, "upstream: is missing"),
        ({"tasks": "none.csv"}, "no such file"),
        ({"completion": {"probes": [200]}}, "completion.probes: each must be below"),
        ({"replay": {"strategies": ["random"], "probes": 180}}, "150"),
        ({"replay": {"strategies": ["none"]}}, "'random'"),
        ({"experiment": "../../x"}, "../../x"),
        ({"sources": {}}, "names no key of sources"),
        ({"recipe": {"method": "lora"}}, "lora"),
        ({"models": {"m": {"source": "folder", "path": "gone"}}}, "gone/config.json"),
        (
            {"models": {"m": {"source": "magic"}}},
            "models.m.source: must be one of 'scratch', 'package', 'hub', 'folder' (value seen: 'm",
        ),
        ({"models": {"m": {}}}, "models.m.source: is missing"),
        ({"models": {"m": {"source": "scratch"}}}, "models.m.architecture: is missing"),
        ({"models": {"m": {**SCRATCH, "architecture": "rnn"}}}, "models.m.architecture: Input"),
        ({"models": {"m": {**SCRATCH, "recipe": {"lrr": 1}}}}, "models.m.recipe.lrr: no such key"),
        ({"models": {"m": {**SCRATCH, "pretraining": {"heads": 3}}}}, "2 x heads 3"),
        ({"models": {"a/b": SCRATCH}}, "a/b"),
        ({"models": {"tasks": SCRATCH}}, "models.tasks: results/ keeps other files"),
        (
            {"models": {}, "matrix": {"path": "z", "layout": "tasks_in_rows", "name": "plots"}},
            "matrix.name: results/",
        ),
        (
            {
                "models": {},
                "matrix": {"path": "z", "layout": "tasks_in_rows"},
                "replay": {"strategies": ["random"]},
            },
            "replay:",
        ),
        (
            {"models": {}, "matrix": {"path": "z", "layout": "tasks_in_rows"}},
            "upstream: a matrix brings its own",
        ),
        ({"models": {"m": {**SCRATCH, "architecture": "mpt"}}}, "context: at least max_tokens"),
        ({"sources": {"x": {"kind": "web"}}}, "sources.x.kind: must be one of 'bigbench', 'hub'"),
        ({"sources": {"a b": {"kind": "web"}}}, "sources.a b: may only hold letters, digits"),
        ({"models": {"m": {**SCRATCH, "recipe": {"micro_batch": 3}}}}, "models.m.recipe: batch 8"),
        ({"models": {"m": {**SCRATCH, "recipe": {"lr": None}}}}, "models.m.recipe.lr: Input"),
        (
            {"models": {"m": {**SCRATCH, "recipe": {"weight_decay": 1}}}},
            "models.m.recipe.weight_decay: no such key (value seen: 1); it is set for all models",
        ),
        ({"recipe": {"max_epochs": "none"}}, "; leave a setting out by writing null"),
        ({"sources": {"x": {"kind": "files", "folder": "f", "text": "words"}}}, "names no field"),
        ({"upstream": {"examples": 1, "domains": {"n": "bigbench:a"}}}, "leaves no held-out"),
        ({"upstream": {"examples": 0, "domains": {"n": "bigbench:a"}}}, "upstream.examples"),
        ({"upstream": {"examples": 200, "domains": {}}}, "upstream.domains"),
        ({"upstream": {"examples": 200, "domains": {"files": 3}}}, "upstream.domains.files"),
        ({"upstream": {"examples": 200, "domains": {"n": "bigbench"}}}, "lacks the part after"),
        ({"upstream": {"examples": 200, "domains": {"n": "local:gone.txt"}}}, "texts/gone.txt"),
        (
            {"upstream": {"examples": 200, "domains": {"n": "saved:"}}},
            "sources.saved.path: no such",
        ),
        ({"replay": {"strategies": ["random"], "ratio": 1.5}}, "replay.ratio"),
        (
            {
                "upstream": {
                    "examples": 70,
                    "heldout": 0.5,
                    "domains": {f"d{number}": "bigbench:a" for number in range(10)},
                },
                "replay": {"strategies": ["random"], "probes": 31},
            },
            "replay.probes: must be at most 30",
        ),
        (
            {
                "recipe": {"group_steps": {"one": 5}},
                "replay": {
                    "strategies": ["random"],
                    "variants": {"short": {"strategy": "none", "recipe": {"steps": 3}}},
                },
            },
            "replay.variants.short.recipe.steps: recipe.group_steps comes before it",
        ),
        ({"replay": {"strategies": ["random", "best"]}}, "replay.strategies.1"),
        ({"replay": {"strategies": ["random"], "seeds": [1, 1]}}, "seeds holds a value twice"),
        ({"completion": {"methods": ["mf", "mf"]}}, "methods holds a value twice"),
        ({"completion": {"methods": []}}, "completion.methods"),
        ({"recipe": {"lr": float("nan")}}, "recipe.lr"),
        ({"recipe": {"lr": float("inf")}}, "recipe.lr"),
        ({"recipe": {"steps": 0}}, "recipe.steps"),
        ({"recipe": {"max_tokens": 1}}, "recipe.max_tokens"),
        ({"recipe": {"lora": {"dropout": 1}, "method": "lora"}}, "recipe.lora.dropout"),
        ({"recipe": {"dtype": "float16"}}, "'float32' or 'bfloat16' (value seen: 'float16')"),
        ({"seed": -1}, "seed:"),
        ({"tasks": ["a", "b"]}, "tasks:"),
    ],
)
def test_each_mistake_is_refused_with_its_key_and_value(experiment, change, part):
    config, folder = experiment
    assert part in problems({**config, **change}, folder)


@pytest.mark.parametrize("config", [None, [], "text", {}])
def test_what_is_no_experiment_is_refused(tmp_path, config):
    assert "experiment without a name" in problems(config, tmp_path)


TABLE = "name,group,source,split\n"


@pytest.mark.parametrize(
    ("table", "part"),
    [
        ("name,group,source\na,g,bigbench:a\n", r"lacks the column(s) ['split']"),
        ("", "lacks the column(s)"),
        (TABLE, "holds no task"),
        (TABLE + "a,g,bigbench:a,train\nb,g,bigbench:b,train\n", "at least 1 of split test"),
        (TABLE + "a,g,bigbench:a,train\nb,g,bigbench:b,test\n", "at least 2 of split train"),
        (TABLE + "a,,bigbench:a,train\n", "line 2: task 'a' has no group"),
        (TABLE + "a,g,web:a,train\n", "task 'a': source 'web:a' names no key of sources"),
        (TABLE + "a,g,bigbench:a,Train\n", "line 2: split must be one of train, test, ood"),
        (TABLE + "a\n", "line 2: 1 cell(s), but the header names 4"),
        (TABLE + "a,g,bigbench:a,train,x\n", "line 2: 5 cell(s), but the header names 4"),
        (TABLE + 'a,"g" h,bigbench:a,train\n', "tasks.csv: not readable as CSV (line 2: "),
        (TABLE + '\n"a\nb,g,bigbench:a,train\n', "tasks.csv: not readable as CSV (line 3: "),
        ("name,group,source,split,name\n", "the header names the column(s) ['name'] twice"),
        (TABLE + "example_id,g,bigbench:a,train\n", "'example_id' is the name of another column"),
        (TABLE + "a\n", "line 2: split must be one of train, test, ood (value seen: '')"),
    ],
)
def test_each_mistake_in_the_task_table_is_refused_with_its_line(experiment, table, part):
    config, folder = experiment
    (folder / "tasks.csv").write_text(table)
    assert part in problems(config, folder)


def test_a_task_table_saved_by_a_spreadsheet_is_read(experiment):
    config, folder = experiment
    (folder / "tasks.csv").write_text((folder / "tasks.csv").read_text(), "utf-8-sig")
    assert load_experiment(config, folder).names() == ["a", "b", "c"]


def test_a_task_table_that_is_not_utf_8_is_refused(experiment):
    config, folder = experiment
    (folder / "tasks.csv").write_bytes((TABLE + "é,g,bigbench:a,train\n").encode("latin-1"))
    assert "tasks.csv: not readable as CSV" in problems(config, folder)


def test_a_model_that_stands_twice_is_refused(experiment):
    config, folder = experiment
    path = folder / "twice.yaml"
    path.write_text("models:\n  olmo: {source: scratch}\n  x: {a: 1, a: 2}\n  olmo: {}\n")
    with pytest.raises(ExperimentError) as caught:
        load_experiment(config, folder, [path])
    assert "line 4: models.olmo stands twice, first on line 2" in str(caught.value)
    assert "models.x.a" in str(caught.value)


def test_a_problem_names_the_file_and_line_of_its_key(experiment):
    config, folder = experiment
    path = folder / "e.yaml"
    path.write_text(
        "experiment: tiny\nmodels:\n  olmo-0.7m:\n    source: scratch\n    architecture: rnn\n"
        "completion:\n  probes:\n  - 5\n  - none\n"
    )
    config = {**config, **yaml.safe_load(path.read_text())}
    with pytest.raises(ExperimentError) as caught:
        load_experiment(config, folder, [path])
    assert f"{path}, line 5: models.olmo-0.7m.architecture: Input" in str(caught.value)
    assert f"{path}, line 9: completion.probes.1: Input" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: 1\nb: [1\nc: 2\n", "line 3, column 2: not valid YAML"),
        ("a: 1\n\tb: 2\n", "line 2, column 1: not valid YAML"),
        ("a: *gone\n", "line 1, column 4: not valid YAML"),
        ("b: 1\na: &x {b: *x}\n", "line 2: an anchor (&name) holds itself"),
        ("[" * 3000, "nested too deeply"),
    ],
)
def test_yaml_that_cannot_be_read_is_refused_with_file_and_line(experiment, text, part):
    config, folder = experiment
    path = folder / "broken.yaml"
    path.write_text(text)
    for read in (lambda: load_experiment(config, folder, [path]), lambda: read_yaml(path)):
        with pytest.raises(ExperimentError) as caught:
            read()
        assert str(path) in str(caught.value)
        assert part in str(caught.value)


def test_aliases_that_multiply_without_bound_are_refused_at_once(experiment):
    config, folder = experiment
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for before, name in pairwise("abcdefghijkl"):
        lines.append(f"{name}: &{name} [{', '.join(['*' + before] * 10)}]")
    path = folder / "many.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ExperimentError, match="more than 100,000 values"):
        load_experiment(yaml.safe_load(path.read_text()), folder, [path])
    # Without the file its values are still shown in short.
    assert "a: no such key" in problems(yaml.safe_load(path.read_text()), folder)


def test_shipped_experiments_are_read_as_snakemake_reads_them():
    for path in [ROOT / "config.yaml", *(ROOT / "experiments").rglob("*.yaml")]:
        assert read_yaml(path) == yaml.safe_load(path.read_text())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"recipe": {"frozen": ["("]}}, "recipe.frozen.0: is no regular expression"),
        ({"recipe": {"seed": 10**30}}, "recipe.seed: Input should be less than 2147483648 (value"),
        ({"seed": 2**31}, "seed: Input should be less than 2147483648 (value seen: 2147483648)"),
        ({"completion": {"seeds": [0, 2**40]}}, "completion.seeds.1: Input should be less than"),
        ({"recipe": {"batch": 10**30}}, "recipe.batch: Input should be less than 2147483648"),
        ({"recipe": {"warmup_steps": 2**31}}, "recipe.warmup_steps: Input should be less than"),
        ({"scoring": {"max_tokens": 2**31}}, "scoring.max_tokens: Input should be less than"),
        ({"completion": {"threshold": float("nan")}}, "completion.threshold: Input should be a"),
        ({"recipe": {"lora": {"targets": "*"}, "method": "lora"}}, "is no regular expression"),
        ({"models": {"transfer.csv": SCRATCH}}, "models.transfer.csv: results/ keeps other files"),
        ({"models": {"report.HTML": SCRATCH}}, "models.report.HTML: results/ keeps other files"),
        ({"models": {"associations": SCRATCH}}, "models.associations: results/ keeps other"),
        (
            {"sources": {"bigbench": {"kind": "bigbench", "version": "1.0/../x"}}},
            "sources.bigbench.version: a version is digits and dots, like 1.0.2 (value seen: '1.0/",
        ),
        (
            {"models": {"m": {"source": "package", "version": "0/../../outside/other-1.0"}}},
            "models.m.version: a version is digits and dots",
        ),
        (
            {"similarity": {"encoder": {"source": "package", "version": "1.0\n"}}},
            "version: a version is digits and dots",
        ),
        ({"recipe": {"lr": 1e39}}, "recipe.lr: must be at most 1e+37"),
        ({"recipe": {"max_grad_norm": 1e300}}, "recipe.max_grad_norm: must be at most 1e+37"),
        ({"recipe": {"lora": {"targets": []}, "method": "lora"}}, "at least 1 item"),
        ({"recipe": {"lora": {"targets": [""]}, "method": "lora"}}, "at least 1 character"),
        (
            {"models": {"m": {"source": "hub", "path": "a/b", "revision": "../../x"}}},
            "models.m.revision: a revision is a branch, tag or commit",
        ),
        (
            {"models": {"m": {"source": "hub", "path": "a/b", "revision": "x/../../y"}}},
            "models.m.revision: a revision is a branch, tag or commit",
        ),
        (
            {"models": {"m": {"source": "hub", "path": ""}}},
            "models.m.path: must be a file, folder or id",
        ),
        (
            {"models": {"m": {"source": "folder", "path": "a\0b"}}},
            "models.m.path: must be a file, folder or id",
        ),
        (
            {"models": {"m": {"source": "hub", "path": "a/b", "chat_template": ""}}},
            "models.m.chat_template: must be a file, folder or id",
        ),
        (
            {"sources": {"local": {"kind": "files", "folder": ".", "answer": "{response"}}},
            "sources.local: answer names no field of the record",
        ),
        ({"tasks": ""}, "tasks: must be a file, folder or id"),
        ({"tasks": "x" * 300}, "tasks: the name xxxxxxxxxxxxxxxxxxxx... has more than 255 bytes"),
        ({"tasks": "é" * 200 + "/tasks.csv"}, "has more than 255 bytes"),
        ({"tasks": "a\0b"}, "tasks: must be a file, folder or id"),
        (
            {"sources": {"local": {"kind": "files", "folder": "x" * 300, "text": "{a}"}}},
            "sources.local.folder: the name xxxxxxxxxxxxxxxxxxxx... has more than 255 bytes",
        ),
        ({"seed": True}, "seed: a number is needed, not a truth value"),
        ({"recipe": {"steps": True}}, "recipe.steps: a number is needed, not a truth value"),
        ({"recipe": {"lr": False}}, "recipe.lr: a number is needed, not a truth value"),
        (
            {"recipe": {"group_steps": {"g": True}}},
            "group_steps.g: a number is needed, not a truth",
        ),
        ({"completion": {"seeds": [True]}}, "completion.seeds.0: a number is needed, not a truth"),
    ],
)
def test_settings_that_no_job_survives_are_refused_at_the_start(experiment, change, part):
    config, folder = experiment
    assert part in problems({**config, **change}, folder)


@pytest.mark.parametrize("number", ["010", "-07", "0_17", "12:30", "1:00:00", "1:30.5"])
def test_numbers_that_yaml_reads_as_others_are_refused(experiment, number):
    config, folder = experiment
    path = folder / "numbers.yaml"
    path.write_text(f"a:\n- 1\n- {number}\n")
    for read in (lambda: load_experiment(config, folder, [path]), lambda: read_yaml(path)):
        with pytest.raises(ExperimentError, match=f"line 3: {number} is read as another number"):
            read()


def test_numbers_that_yaml_reads_as_meant_are_read(experiment):
    _, folder = experiment
    path = folder / "numbers.yaml"
    path.write_text("a: [0, 00, 1_000, 1e3, '010', \"12:30\", 0.5, 08x, a:1, 10:x]\n")
    numbers = read_yaml(path)["a"][:4]
    assert list(map(number_of, numbers)) == [0, 0, 1000, 1000]


def test_tasks_that_differ_by_case_only_need_a_file_system_that_tells_it(experiment, monkeypatch):
    config, folder = experiment
    table = folder / config["tasks"]
    lines = table.read_text().splitlines()
    name, rest = lines[1].split(",", 1)
    table.write_text("\n".join([*lines, f"{name.upper()},{rest}"]))
    load_experiment(config, folder)
    monkeypatch.setattr(Path, "samefile", lambda path, other: True)
    with pytest.raises(ExperimentError, match=f"{name!r} and {name.upper()!r} differ by upper"):
        load_experiment(config, folder)


def test_a_source_cannot_leave_its_folder(experiment):
    config, folder = experiment
    (folder / "texts").mkdir()
    domains = {"news": "local:../../etc/passwd"}
    config = {**config, "upstream": {"examples": 200, "domains": domains}}
    assert "leaves its folder" in problems(config, folder)


@pytest.fixture
def own(tmp_path):
    (tmp_path / "tasks.csv").write_text("name,group,split\na,g,train\nb,g,train\nc,g,test\n")
    (tmp_path / "z.npy").touch()
    matrix = {"path": "z.npy", "layout": "tasks_in_rows"}
    return {"experiment": "own", "tasks": "tasks.csv", "matrix": matrix}, tmp_path


def test_a_matrix_of_ones_own_needs_no_sources_of_examples(own):
    assert load_experiment(*own).names() == ["a", "b", "c"]


def test_a_matrix_is_refused_with_a_names_file_that_is_not_there_or_repeats(own):
    config, folder = own
    config["matrix"]["examples"] = "ids.txt"
    config["noise"] = {"tasks": ["a"]}
    message = problems(config, folder)
    assert "matrix.examples: no such file or folder: ids.txt" in message
    assert "noise: a matrix has no model to train again" in message


def test_a_task_that_is_repeated_must_be_in_the_table(experiment):
    config, folder = experiment
    assert "noise.tasks: 'd' is not in the task table" in problems(
        {**config, "noise": {"tasks": ["d"]}}, folder
    )


def test_a_group_with_steps_of_its_own_must_be_in_the_table(experiment):
    config, folder = experiment
    assert "recipe.group_steps: 'h' is no group of the task table" in problems(
        {**config, "recipe": {"group_steps": {"h": 5}}}, folder
    )
    short = {"strategy": "random", "recipe": {"group_steps": {"h": 5}}}
    replay = {"strategies": ["random"], "variants": {"short": short}}
    assert "replay.variants.short.recipe.group_steps: 'h' is no group" in problems(
        {**config, "replay": replay}, folder
    )


def test_models_are_compared_on_no_more_rows_than_there_are(experiment):
    config, folder = experiment
    models = {**config["models"], "other": config["models"]["olmo"]}
    config = {**config, "models": models, "transfer": {"own_rows": [5, 7]}}
    assert "transfer.own_rows: at least one number must be at most 2, " in problems(config, folder)


def test_exact_match_of_plain_text_is_refused_before_anything_runs(experiment):
    config, folder = experiment
    config["scoring"] = {"exact_match": {"normaliser": "plain"}}
    config["sources"]["code"] = {"kind": "stdlib"}
    config["upstream"]["domains"]["code"] = "code:all"
    message = problems(config, folder)
    assert "upstream.domains.news: scoring.exact_match wants pairs; give its source" in message
    assert "upstream.domains.code: scoring.exact_match wants pairs" in message
    config["sources"]["bigbench"]["upstream_as"] = "pairs"
    del config["upstream"]["domains"]["code"]
    assert load_experiment(config, folder).settings.scoring.exact_match.max_new_tokens == 64


def test_logistic_methods_and_probes_of_losses_are_refused_before_anything_runs(experiment):
    config, folder = experiment
    config["completion"] = {"probe_choice": ["random", "a_optimal_logistic"]}
    expected = "completion.probe_choice: a_optimal_logistic needs scoring.exact_match"
    assert expected in problems(config, folder)
    config["completion"]["methods"] = ["gaussian", "logistic_fa", "logistic_mf"]
    expected = "completion.methods: logistic_fa, logistic_mf needs scoring.exact_match"
    assert expected in problems(config, folder)
    config["scoring"] = {"exact_match": {}}
    config["sources"]["bigbench"]["upstream_as"] = "pairs"
    assert load_experiment(config, folder).settings.scoring.exact_match is not None


def test_an_adapter_in_the_place_of_a_model_is_named_with_its_base(experiment):
    config, folder = experiment
    (folder / "adapter").mkdir()
    settings = json.dumps({"base_model_name_or_path": "org/base"})
    (folder / "adapter/adapter_config.json").write_text(settings)
    config["models"]["mine"] = {"source": "folder", "path": "adapter"}
    message = problems(config, folder)
    assert "models.mine.path: no such file or folder: adapter/config.json" in message
    assert "holds an adapter of org/base" in message and "merge" in message


def test_a_template_file_that_is_not_there_is_refused(experiment):
    config, folder = experiment
    config["models"]["mine"] = {"source": "hub", "path": "a/b", "chat_template": "gone.jinja"}
    assert "models.mine.chat_template: no such file or folder: gone.jinja" in problems(
        config, folder
    )


@pytest.fixture
def folder_of_matrices(own):
    config, folder = own
    del config["matrix"]
    (folder / "zs").mkdir()
    for name in ("one.npy", "one.meta", "two.npy", "two.meta"):
        (folder / "zs" / name).touch()
    return config | {"matrices": {"folder": "zs"}}, folder


def test_a_folder_of_matrices_is_taken_whole_or_in_part(folder_of_matrices):
    config, folder = folder_of_matrices
    assert load_experiment(config, folder).own_matrices == {
        "one": "zs/one.npy",
        "two": "zs/two.npy",
    }
    config["matrices"]["only"] = ["two"]
    assert list(load_experiment(config, folder).own_matrices) == ["two"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"folder": "gone"}, "matrices.folder: no .npy file in gone"),
        ({"folder": "zs", "only": ["tow"]}, "zs has no tow.npy; did you mean 'two'?"),
        ({"folder": "zs", "only": ["tasks"]}, "zs/tasks.npy: rename it"),
        ({"folder": "zs", "only": ["bare"]}, "zs/bare.npy has no zs/bare.meta"),
    ],
)
def test_a_folder_of_matrices_that_cannot_be_taken_is_refused(folder_of_matrices, change, message):
    config, folder = folder_of_matrices
    for name in ("tasks.npy", "tasks.meta", "bare.npy"):
        (folder / "zs" / name).touch()
    assert message in problems(config | {"matrices": change}, folder)


def test_models_and_matrices_are_not_mixed(folder_of_matrices):
    config, folder = folder_of_matrices
    config["models"] = {"m": SCRATCH}
    assert "one of them" in problems(config, folder)


def test_what_a_model_sets_to_null_is_null_for_it(experiment):
    config, folder = experiment
    config["models"]["endless"] = {**SCRATCH, "recipe": {"max_epochs": None}}
    loaded = load_experiment(config, folder)
    assert loaded.recipe("endless").max_epochs is None
    assert loaded.recipe("olmo").max_epochs == 3


def test_one_model_can_be_trained_by_adapters_and_another_whole(experiment):
    config, folder = experiment
    adapters = {"method": "lora", "lora": {"rank": 16, "alpha": 32}, "lr": 1e-3}
    config["models"]["adapted"] = {**SCRATCH, "recipe": adapters}
    loaded = load_experiment(config, folder)
    assert loaded.recipe("adapted").method == "lora"
    assert loaded.recipe("adapted").lora.rank == 16
    assert loaded.recipe("olmo").method == "full"

    del adapters["lora"]
    assert "method 'lora' and the section lora go together" in problems(config, folder)


def test_a_memory_has_defaults_and_finished_recipes_stay_as_they_were(experiment):
    config, folder = experiment
    assert (
        not {"memory", "router"}
        & load_experiment(config, folder).recipe("olmo").model_dump().keys()
    )
    config["models"]["edited"] = {**SCRATCH, "recipe": {"method": "memory"}}
    config["models"]["routed"] = {**SCRATCH, "recipe": {"router": {"quantile": 0.9}}}
    loaded = load_experiment(config, folder)
    assert loaded.recipe("edited").memory == loaded.recipe("edited").routing
    assert loaded.recipe("routed").routing.quantile == 0.9
    config["models"]["edited"]["recipe"]["memory"] = {"routing": False}
    assert load_experiment(config, folder).recipe("edited").routing is None


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"memory": {}}, "belongs to method 'memory'"),
        ({"method": "memory", "router": {}}, "routes by itself"),
        ({"method": "memory", "ewc": 1.0}, "use l2"),
        ({"method": "memory", "keep_weights": True}, "recipe.keep_weights"),
        ({"router": {"quantile": 1}}, "quantile"),
    ],
)
def test_a_memory_that_cannot_be_trained_is_refused(experiment, recipe, message):
    config, folder = experiment
    config["recipe"] = {**config.get("recipe", {}), **recipe}
    assert message in problems(config, folder)


def test_predictions_behind_a_router_are_not_compared(experiment):
    config, folder = experiment
    config["prediction_changes"] = True
    config["recipe"] = {**config.get("recipe", {}), "router": {}}
    assert "prediction_changes: olmo has recipe.router" in problems(config, folder)


@pytest.mark.parametrize(
    ("recipe", "section", "message"),
    [
        ({"router": {}}, {"noise": {"tasks": ["add"]}}, "noise.measurements: olmo has recipe."),
        (
            {"router": {}},
            {"replay": {"strategies": ["none", "random", "online"]}},
            "online measures",
        ),
        (
            {"method": "memory"},
            {
                "replay": {
                    "strategies": ["none", "random"],
                    "variants": {"line": {"strategy": "none", "interpolate": [0.5, 1]}},
                }
            },
            "line has several shares",
        ),
        (
            {"method": "memory"},
            {"similarity": {"associations": ["weight_difference"]}},
            "the method memory of olmo changes none",
        ),
    ],
)
def test_measurements_that_need_the_weights_alone_are_refused(experiment, recipe, section, message):
    config, folder = experiment
    config["recipe"] = {**config.get("recipe", {}), **recipe}
    for key, values in section.items():
        config[key] = {**config.get(key, {}), **values}
    assert message in problems(config, folder)


def test_a_memory_in_shards_is_refused(experiment):
    config, folder = experiment
    config["models"]["large"] = {
        **{"source": "hub", "path": "a/b", "gpus": 4, "strategy": "fsdp"},
        "recipe": {"method": "memory"},
    }
    assert "fsdp does not go with recipe.memory" in problems(config, folder)


def test_a_model_in_shards_has_as_many_processes_as_gpus(experiment):
    config, folder = experiment
    config["models"]["large"] = {"source": "hub", "path": "a/b", "gpus": 4, "strategy": "fsdp"}
    loaded = load_experiment(config, folder)
    assert loaded.recipe("large").processes == 4
    assert loaded.recipe("olmo").processes == 1


@pytest.mark.parametrize(
    ("model", "recipe", "message"),
    [
        ({"gpus": 4}, {}, "gpus above 1 and strategy: fsdp go together"),
        ({"strategy": "fsdp"}, {}, "gpus above 1 and strategy: fsdp go together"),
        ({"resources": {"gpu": 1}}, {}, "resources.gpu 1 is not gpus 2; give one"),
        ({"gpus": 3}, {}, "the batch of the recipe, 8, is no multiple of 3 gpus x micro_batch 1"),
        (
            {},
            {"micro_batch": 8},
            "the batch of the recipe, 8, is no multiple of 2 gpus x micro_batch 8",
        ),
        ({}, {"optimizer": "adamw_8bit"}, "fsdp needs recipe.optimizer adamw"),
        ({}, {"processes": 2}, "recipe.processes: give the model gpus and strategy"),
    ],
)
def test_what_a_model_in_shards_cannot_do_is_refused(experiment, model, recipe, message):
    config, folder = experiment
    shards = {} if "strategy" in model or model == {"gpus": 4} else {"gpus": 2, "strategy": "fsdp"}
    config["models"]["large"] = {"source": "hub", "path": "a/b"} | shards | model
    config["recipe"] = recipe
    assert message in problems(config, folder)


def test_the_recipe_of_a_variant_must_suit_a_model_in_shards_too(experiment):
    config, folder = experiment
    config["models"]["large"] = {"source": "hub", "path": "a/b", "gpus": 2, "strategy": "fsdp"}
    variants = {
        "eight-bit": {"strategy": "random", "recipe": {"optimizer": "adamw_8bit"}},
        "odd": {"strategy": "random", "recipe": {"batch": 3}},
    }
    config["replay"] = {"strategies": ["none", "random"], "variants": variants}
    message = problems(config, folder)
    assert "needs recipe.optimizer adamw, but replay.variants.eight-bit has adamw_8bit" in message
    assert "the batch of replay.variants.odd, 3, is no multiple of 2 gpus" in message


def test_a_finished_pool_takes_the_place_of_the_domains(experiment):
    config, folder = experiment
    pool = {"pool": "pool.parquet"}
    assert "upstream.pool" in problems({**config, "upstream": pool}, folder)
    assert "give one of both" in problems({**config, "upstream": pool | {"examples": 10}}, folder)
    assert "scratch needs upstream.domains" in problems({**config, "upstream": pool}, folder)


@pytest.mark.parametrize("key", ["sibling", "prior"])
def test_a_sibling_or_prior_is_a_model_of_the_experiment_or_has_a_matrix(experiment, key):
    config, folder = experiment
    name = config["experiment"]
    load_experiment(config | {"completion": {key: f"{name}/olmo"}}, folder)
    wrong = problems(config | {"completion": {key: f"{name}/olmoo"}}, folder)
    assert f"completion.{key}: 'olmoo' is no model of this experiment" in wrong
    elsewhere = {"completion": {key: "other/small"}}
    wrong = problems(config | elsewhere, folder)
    assert f"completion.{key}: no such file: results/other/small/Z.parquet; run the" in wrong
    (folder / "results/other/small").mkdir(parents=True)
    (folder / "results/other/small/Z.parquet").touch()
    load_experiment(config | elsewhere, folder)
    for value in ("small", "../x/small", "a/b/c", "a/.."):
        assert f"completion.{key}" in problems(config | {"completion": {key: value}}, folder)


def test_tasks_can_be_left_out_as_if_the_table_did_not_hold_them(experiment):
    config, folder = experiment
    with (folder / "tasks.csv").open("a") as table:
        table.write("d,two,bigbench:d,train\n")
    loaded = load_experiment({**config, "leave_out": ["b"]}, folder)
    assert loaded.names() == ["a", "c", "d"] and list(loaded.left_out) == ["b"]
    message = problems({**config, "leave_out": ["x"]}, folder)
    assert "leave_out: no task 'x' in the task table; seen: ['a', 'b', 'c', 'd']" in message
    message = problems({**config, "leave_out": ["a", "b"]}, folder)
    assert "needs at least 2 of split train" in message
    message = problems({**config, "leave_out": ["a", "b", "c", "d"]}, folder)
    assert "leave_out: names every task of the table" in message


@pytest.mark.parametrize("text", ["1e-1", "1.5e3", "+2E2", ".5e-1"])
def test_a_number_that_yaml_may_read_as_text_is_a_number(tmp_path, text):
    path = tmp_path / "e.yaml"
    path.write_text(f"lr: {text}\n")
    assert Recipe(**read_yaml(path)).lr == float(text)
    assert Recipe(lr=text).lr == float(text)
    replay = Replay(strategies=["random"], temperature=text)
    assert replay.temperature == float(text)
    assert Replay(strategies=["random"], temperature={"sd": text}).temperature.sd == float(text)


def test_a_whole_number_may_have_an_exponent():
    assert Recipe(steps="1e3").steps == 1000
    with pytest.raises(ValidationError):
        Recipe(steps="1e-3")


def test_values_are_those_that_snakemake_reads(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("y: n\nyes_is: yes\nday: 2026-11-29\nnumber: 1_000\n")
    assert read_yaml(path) == yaml.load(path.read_text(), Loader=yaml.FullLoader)
    assert read_yaml(path)["y"] == "n"


def test_a_brace_in_the_name_of_a_file_is_refused_before_snakemake_reads_a_wildcard(experiment):
    config, folder = experiment
    (folder / "texts").mkdir(exist_ok=True)
    (folder / "texts/a{b}.txt").write_text("text")
    domains = {"news": "local:*.txt"}
    config = {**config, "upstream": {"examples": 200, "domains": domains}}
    assert "texts/a{b}.txt holds a brace" in problems(config, folder)


def test_a_value_that_selects_records_is_no_path():
    source = TypeAdapter(Source).validate_python({"kind": "hub", "path": "d", "by": "subset"})
    assert source_problems({"d": source}, {"t": "d:/r/x"}) == []


def test_a_variant_may_change_the_steps_of_groups_too(experiment):
    config, folder = experiment
    changes = {"steps": 3, "group_steps": {}}
    replay = {"strategies": ["random"], "variants": {"s": {"strategy": "none", "recipe": changes}}}
    loaded = load_experiment(
        {**config, "recipe": {"group_steps": {"one": 5}}, "replay": replay}, folder
    )
    recipe = loaded.settings.replay.resolve("s").apply_to(loaded.recipe("olmo"))
    assert (recipe.steps, recipe.group_steps) == (3, {})
