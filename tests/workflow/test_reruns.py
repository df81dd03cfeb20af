"""A change reruns only what depends on it: on real runs."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from helpers.experiment import ROOT, Workspace, job_counts, make_experiment

from lethe.data.examples import read_upstream
from lethe.matrix import rows

pytestmark = pytest.mark.xdist_group("workflow")


def test_a_new_task_costs_one_row_per_model_and_leaves_finished_rows_alone(copied):
    before = copied.rows()
    with (copied.folder / "tasks.csv").open("a") as table:
        table.write("halve,numbers,local:halve.jsonl,train\n")
    planned = copied.planned()
    assert planned["measure_row"] == planned["gather_matrix"] == 2
    assert planned["prepare_task"] == 1
    # Predictions have changed; the truth, chance and no replay are as before.
    additive = list(copied.results.glob("*/replay/additive/*.parquet"))
    assert planned["replay_run"] == len(additive) > 0
    assert not planned.keys() & {"pretrain_model", "score_base", "prepare_upstream"}
    copied.run("--until", "rank_curve")
    after = copied.rows()
    assert len(after) == len(before) + 2
    assert {path: after[path] for path in before} == before


def test_a_new_test_task_adds_its_own_predictions_and_replay_runs_only(copied):
    copied.change(replay={"strategies": ["none", "random", "additive", "oracle", "online"]})
    copied.run("--until", "gather_replay")
    assert copied.planned() == {"draw_plots": 1, "write_report": 1}
    table = copied.folder / "tasks.csv"
    table.write_text(table.read_text() + "halve,numbers,local:halve.jsonl,test\n")
    planned = copied.planned()
    assert planned["measure_row"] == planned["gather_matrix"] == planned["predict_row"] == 2
    assert planned["replay_run"] == 2 * 5
    assert "gather_training_rows" not in planned
    # Scored out of domain only, the other one is predicted and replayed as before.
    table.write_text(table.read_text().replace("reverse.jsonl,test", "reverse.jsonl,ood"))
    assert copied.planned() == planned


def test_another_group_repeats_no_fine_tune(copied):
    table = copied.folder / "tasks.csv"
    table.write_text(table.read_text().replace("words,local", "text,local"))
    planned = copied.planned()
    assert planned["gather_matrix"] == 2
    assert not planned.keys() & {"measure_row", "predict_row", "replay_run"}


def test_strategies_that_choose_while_they_train_run_beside_finished_ones(copied):
    """They read Z, and no prediction of the task's row; finished runs stay as they are."""
    finished_runs = {path: path.read_bytes() for path in copied.results.glob("olmo/replay/*/*")}
    strategies = ["none", "random", "additive", "oracle", "online", "closed_loop"]
    variants = {"online_kl": {"strategy": "online", "objective": "kl", "dose": "token"}}
    changes = {"strategies": strategies, "variants": variants, "prediction": "mf"}
    copied.change(replay=changes)
    target = "results/tiny/olmo/replay.csv"
    planned = job_counts(copied.run("--dry-run", target, "--quiet", "rules"))
    assert planned["replay_run"] == 3
    assert not planned.keys() & {"measure_row", "predict_row", "gather_matrix"}
    copied.run("--keep-going", target)
    assert {path: path.read_bytes() for path in finished_runs} == finished_runs
    passes = pd.read_csv(copied.folder / target).set_index("strategy").probe_passes
    # Rows of other runs have no value.
    assert passes.dropna().to_dict() == {"online": 5, "closed_loop": 15, "online_kl": 5}
    upstream = read_upstream(copied.results / "upstream.parquet")
    replayable = {example.example_id for example in upstream if example.split == "replayable"}
    phases = {}
    for name in ("online", "closed_loop", "online_kl"):
        run = rows.read_row(copied.results / f"olmo/replay/{name}/reverse-seed0.parquet")
        phases[name] = run.about["replay_phases"]
        assert sum(len(phase["examples"]) for phase in phases[name]) == run.about["replayed"] == 12
        for phase in phases[name]:
            assert {*phase["examples"], *phase["probes"]} <= replayable
    assert [phase["step"] for phase in phases["online"]] == [0, 2]
    assert [phase["step"] for phase in phases["closed_loop"]] == [0, 4, 8, 11]
    # Another time of the probes is another run of that strategy, and of no other.
    copied.change(replay=changes | {"closed_loop_after": [0.5]})
    planned = job_counts(copied.run("--dry-run", target, "--quiet", "rules"))
    assert planned["replay_run"] == 1


def test_importance_sampling_runs_beside_finished_ones_with_their_prediction(copied):
    weighted = {"strategy": "importance", "objective": "kl", "dose": "token", "weight": 4.0}
    copied.change(replay={"prediction": "additive", "variants": {"weighted": weighted}})
    target = "results/tiny/olmo/replay.csv"
    planned = job_counts(copied.run("--dry-run", target, "--quiet", "rules"))
    assert planned["replay_run"] == 1
    assert not planned.keys() & {"measure_row", "predict_row", "gather_matrix"}
    copied.run("--keep-going", target)
    line = pd.read_csv(copied.folder / target).set_index("strategy").loc["weighted"]
    assert line.replayed == line.replayed_distinct == 12
    assert 1 <= line.effective_sample_size < line.pool
    # The softmax plays no part in it.
    copied.change(replay={"temperature": 0.5})
    planned = job_counts(copied.run("--dry-run", target, "--quiet", "rules"))
    assert planned["replay_run"] == 2, "only those of additive and oracle"


def test_another_order_of_the_strategies_is_that_of_the_tables(copied):
    config = yaml.safe_load((copied.folder / "tiny.yaml").read_text())
    strategies = config["replay"]["strategies"][::-1]
    copied.change(replay={"strategies": strategies})
    assert copied.planned() == {"gather_replay": 2, "draw_plots": 1, "write_report": 1}
    target = "results/tiny/olmo/replay.csv"
    copied.run("--", target)
    listed = list(dict.fromkeys(pd.read_csv(copied.folder / target).strategy))
    assert [name for name in listed if name in strategies] == strategies


def test_a_completion_setting_reruns_no_training(copied):
    before = copied.rows()
    copied.change(completion={"probes": [4]})
    assert copied.planned() == {"score_completion": 2, "draw_plots": 1, "write_report": 1}
    copied.run("--until", "score_completion")
    assert copied.rows() == before
    assert copied.planned() == {"draw_plots": 1, "write_report": 1}


def test_a_recipe_reruns_the_rows_it_touches(copied):
    before = copied.rows()
    config = yaml.safe_load((copied.folder / "tiny.yaml").read_text())
    olmo = {**config["models"]["olmo"], "recipe": {"steps": 6}}
    copied.change(models={"olmo": olmo})
    planned = copied.planned()
    assert planned["measure_row"] == 4
    assert not planned.keys() & {"pretrain_model", "score_base", "prepare_task"}
    copied.run("--until", "gather_matrix")
    after = copied.rows()
    changed = {path for path in before if after[path] != before[path]}
    assert changed == {path for path in before if "olmo" in path.parts}


def test_a_raised_version_measures_every_row_again(copied):
    copied.change(recipe={"version": 2})
    assert copied.planned()["measure_row"] == 8


def test_a_formatted_script_reruns_nothing(copied, tmp_path):
    code = _clone(tmp_path)
    for script in (code / "workflow_scripts").glob("*.py"):
        script.write_text(script.read_text() + "\n")
    assert Workspace(copied.folder, code).planned() == {}


def test_a_fresh_clone_beside_copied_results_reruns_nothing(copied, tmp_path):
    shutil.rmtree(copied.folder / ".snakemake")
    assert Workspace(copied.folder, _clone(tmp_path)).planned() == {}


def test_patches_for_another_snakemake_do_nothing_and_report_it(copied, tmp_path):
    code = _clone(tmp_path)
    patches = code / "rules/snakemake_patches.smk"
    patches.write_text(patches.read_text("utf-8").replace('"9.27"', '"9.1"'), "utf-8")
    workspace = Workspace(copied.folder, code)
    output = workspace.run("--dry-run")
    assert output.count("snakemake_patches.smk does nothing") == 1
    assert "not written for snakemake 9.27" in output
    assert workspace.planned() == {}


def test_touched_data_and_weights_rerun_nothing_at_any_size(tmp_path, model_folders):
    """Bytes count, and not times: for files of more than a megabyte, too."""
    make_experiment(tmp_path / "new")
    workspace = Workspace(tmp_path / "new")
    mine = workspace.folder / "mine"
    shutil.copytree(model_folders["llama"]["path"], mine)
    large = [workspace.folder / "texts/notes.txt", mine / "vocab.txt"]
    with large[0].open("a") as text:
        text.write("\n\nA paragraph about nothing in particular." * 50_000)
    large[1].write_text("a word\n" * 3_000_000)
    workspace.change(models={"mine": {"source": "folder", "path": "mine"}})
    targets = ("results/tiny/upstream.parquet", "results/tiny/mine/model.json")
    workspace.run("--", *targets)
    for path in [*mine.iterdir(), *large]:
        copy = path.with_name("copy")
        shutil.copyfile(path, copy)
        copy.replace(path)
    assert "Nothing to be done" in workspace.run("--dry-run", "--", *targets)
    for path in large:
        path.write_text(path.read_text().replace("word", "bird").replace("nothing", "something"))
    output = workspace.run("--dry-run", "--quiet", "rules", "--", *targets)
    assert job_counts(output).keys() == {"locate_model", "prepare_upstream"}


def _clone(folder: Path) -> Path:
    """The code as in a fresh clone: every file is new."""
    code = folder / "clone"
    for name in ("rules", "src", "workflow_scripts", "envs", "profiles", "report"):
        shutil.copytree(ROOT / name, code / name, copy_function=shutil.copyfile)
    shutil.copyfile(ROOT / "Snakefile", code / "Snakefile")
    return code
