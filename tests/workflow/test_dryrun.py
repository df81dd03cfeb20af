"""Dry runs of every shipped experiment, and of one as large as the paper's, with their jobs."""

import csv
import json
import os
import re
import subprocess
import sys
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import paper
from helpers.experiment import ROOT, job_counts

from lethe.config.loading import load_experiment
from lethe.config.yaml_file import read_yaml
from lethe.matrix import forgetting_matrix
from lethe.workflow import ResultFiles, results_folder


def planned(folder, *arguments, **options):
    return job_counts(run(folder, *arguments, "--dry-run", "--quiet", "rules", **options))


def run(folder, *arguments, profile="profiles/default", code=ROOT):
    program = [sys.executable, "-m", "snakemake", "--cores", "2"]
    folders = ["--snakefile", str(code / "Snakefile"), "--directory", str(folder)]
    process = subprocess.run(
        [*program, *arguments, *folders, "--workflow-profile", str(code / profile)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
        env=os.environ | {"LETHE_CACHE": str(folder / "cache")},
        timeout=600,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


def test_every_rule_has_a_docstring():
    """Otherwise `snakemake --list-rules` would not read like a table of contents."""
    for path in [ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk")]:
        lines = path.read_text("utf-8").splitlines()
        for number, line in enumerate(lines):
            if re.match(r"\s*rule \w+:$", line):
                assert re.match(r'\s+"""[A-Z].*\."""$', lines[number + 1]), f"{path}: {line}"


@pytest.fixture
def shipped(tmp_path):
    """A folder with the shipped experiments and no results."""
    for name in ("config.yaml", "tasks.csv", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def table(path):
    with (ROOT / path).open() as lines:
        return list(csv.DictReader(lines))


def test_the_default_experiment(shipped):
    tasks = table("tasks.csv")
    settings = yaml.safe_load((ROOT / "config.yaml").read_text())
    models = len(settings["models"])
    replay = settings["replay"]
    runs = (len(replay["strategies"]) + len(replay["variants"])) * len(replay["seeds"])
    test = [task for task in tasks if task["split"] == "test"]
    assert models == 2 and len(tasks) >= 20 and 0.2 <= len(test) / len(tasks) <= 0.3
    printed = run(shipped, "--dry-run", "--quiet", "rules")
    assert f"replay: {len(test)} test tasks can reach p = 0.023 at best" in printed
    assert "p < 0.05 needs at least 7 tasks" in printed
    counts = job_counts(printed)
    assert counts["prepare_task"] == len(tasks)
    assert counts["measure_row"] == models * len(tasks)
    assert counts["replay_run"] == models * len(test) * runs
    assert counts["pretrain_model"] == counts["score_base"] == counts["gather_matrix"] == models
    assert counts["extract_bigbench"] == counts["write_report"] == 1


def test_smollm2_stands_alone_instead_of_being_merged(shipped):
    tasks = table("experiments/smollm2.csv")
    assert len(tasks) >= 16
    counts = planned(shipped, "--configfile", str(shipped / "experiments/smollm2.yaml"))
    # The pretrained model twice, with all weights and with LoRA, and a tiny one made here.
    assert counts["measure_row"] == 3 * len(tasks)
    assert counts["score_base"] == 3
    assert counts["unpack_model"] == 2
    assert counts["pretrain_model"] == 1


def test_exact_match_goes_through_the_same_graph(shipped):
    counts = planned(shipped, "--configfile", str(shipped / "experiments/smollm2-em.yaml"))
    assert counts["measure_row"] == len(table("experiments/smollm2-em.csv")) >= 16
    assert counts["score_base"] == counts["rank_curve"] == counts["score_completion"] == 1
    assert counts["replay_run"] == 20


def test_model_editing_is_compared_in_replay_runs(shipped):
    counts = planned(shipped, "--configfile", str(shipped / "experiments/memory.yaml"))
    # Two models, eight test tasks, two strategies and four variants.
    assert counts["replay_run"] == 2 * 8 * 6


SHIPPED = [
    "config.yaml",
    *("experiments/memory.yaml", "experiments/model-sizes.yaml", "experiments/own-matrix.yaml"),
    *("experiments/replay-study.yaml", "experiments/sequences.yaml"),
    *("experiments/smollm2.yaml", "experiments/smollm2-em.yaml"),
]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_file_of_every_job_is_a_target(shipped, name, monkeypatch):
    """Or it becomes one when it is lost, although all later files are still there."""
    file = shipped / name
    if name == "experiments/replay-study.yaml":
        # One seed and eight tasks have jobs of all kinds; three seeds and 29 tasks have 16,000.
        few = file.read_text().replace("tasks: all", "tasks: test").replace("[2, 3, 4]", "[2]")
        file = shipped / "few.yaml"
        file.write_text(few)
    output = run(shipped, "--configfile", str(file), "--detailed-summary")
    lines = output[output.index("output_file\t") :].splitlines()
    jobs = defaultdict(set)
    for line in csv.DictReader(lines, delimiter="\t"):
        # Jobs of one rule have different inputs. Only predict_row has one job per method.
        method = line["output_file"] if line["rule"] == "predict_row" else None
        jobs[line["rule"], line["input-file(s)"], method].add(line["output_file"])
    monkeypatch.chdir(shipped)
    experiment = load_experiment(read_yaml(file), files=[file])
    files = ResultFiles(experiment, results_folder(experiment.settings.experiment))
    targets = {*files.targets(), *files.files_before_report()}
    without = {rule for (rule, *_), outputs in jobs.items() if not outputs & targets}
    # Records of packages in the cache are temporary.
    assert without <= {"fetch_package", "extract_bigbench", "unpack_encoder"}
    assert len(jobs) > 5


def test_a_matrix_of_ones_own_trains_nothing(shipped):
    counts = planned(shipped, "--configfile", str(shipped / "experiments/own-matrix.yaml"))
    assert counts == {
        **{"import_matrix": 1, "rank_curve": 1, "score_completion": 1},
        **{"read_components": 1, "draw_plots": 1, "write_report": 1},
    }


def test_the_released_statistics_are_matrices_of_ones_own(shipped):
    """Small files of the released ones' form, through the whole graph."""
    names = [line["name"] for line in table("experiments/paper/flan-tulu-dolly.csv")]
    parts = {"dolly": names[77:], "flan": names[:66], "tulu": names[66:77]}
    meta, start = {}, 0
    for name, tasks in sorted(parts.items(), reverse=True):
        meta[name] = {"start": start, "stop": start + len(tasks), "tasks": tasks}
        start += len(tasks)
    (shipped / "data/released").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for model in ("olmo-1b", "mpt-7b"):
        z = rng.normal(size=(85, 2)) @ rng.normal(size=(2, 50))
        z[:, 7] = -100
        np.save(shipped / f"data/released/{model}.npy", z)
        (shipped / f"data/released/{model}.meta").write_text(json.dumps(meta))
    target = ("results/released/mpt-7b/completion.csv", "--configfile")
    path = str(shipped / "experiments/paper/released.yaml")
    counts = planned(shipped, "--configfile", path)
    assert counts["import_matrix"] == counts["score_completion"] == 2
    run(shipped, *target, path)
    scores = pd.read_csv(shipped / target[0])
    assert {"in_domain", "out_of_domain"} < set(scores.split)
    assert sum(split.startswith("out_of_domain:") for split in set(scores.split)) >= 2
    rmse = scores[(scores.metric == "rmse") & (scores.seed == "all")]
    assert (rmse[rmse.method == "mf"].value < 0.2).all()


def test_the_released_answers_are_a_binary_matrix_of_ones_own(shipped):
    lines = table("experiments/paper/released-instruct.csv")
    groups = list(dict.fromkeys(line["group"] for line in lines))
    meta, start = {}, 0
    for group in groups:
        tasks = [line["name"].replace("_", " ") for line in lines if line["group"] == group]
        meta[group] = {"start": start, "stop": start + len(tasks), "tasks": tasks}
        start += len(tasks)
    meta["olmo2_mix"] = {"start": 124, "stop": 142, "tasks": [f"mix {i}" for i in range(18)]}
    (shipped / "data/released-instruct").mkdir(parents=True)
    z = np.random.default_rng(0).integers(0, 2, (142, 40)).astype(float)
    np.save(shipped / "data/released-instruct/em.npy", z)
    (shipped / "data/released-instruct/em.meta").write_text(json.dumps(meta))
    target = ("results/released-instruct/em/rank_curve.csv", "--configfile")
    run(shipped, *target, str(shipped / "experiments/paper/released-instruct.yaml"))
    curve = pd.read_csv(shipped / target[0])
    assert curve[curve.predictor == "logistic_mf"].f1.between(0, 1).all()
    assert (
        len(forgetting_matrix.read_matrix(shipped / "results/released-instruct/em/Z.parquet").tasks)
        == 124
    )


PAPER = sorted(
    path.stem for path in (ROOT / "experiments/paper").glob("*.yaml") if "released" not in path.stem
)


@pytest.fixture
def downloaded(shipped):
    """With the downloads that the experiments of the paper read."""
    tasks = table("experiments/paper/instruct.csv")
    paper.downloads(shipped, [task["name"] for task in tasks if task["group"] == "bbh"])
    return shipped


@pytest.mark.parametrize("name", PAPER)
def test_a_z_of_the_paper_has_one_row_per_task(downloaded, name):
    target = f"results/{name}/{name}/completion.csv"
    file = str(downloaded / f"experiments/paper/{name}.yaml")
    counts = planned(downloaded, target, "--configfile", file)
    tasks = 142 if "instruct" in name else 85 if name in ("olmo-1b", "olmo-7b", "mpt-7b") else 19
    assert counts.pop("prepare_task") == counts.pop("measure_row") == tasks
    once = ("prepare_upstream", "locate_model", "score_base", "gather_matrix", "score_completion")
    assert counts == dict.fromkeys(once, 1)


def test_the_paper_replays_on_every_task_that_is_predicted(downloaded):
    target = "results/olmo-7b/olmo-7b/replay.csv"
    file = str(downloaded / "experiments/paper/olmo-7b.yaml")
    counts = planned(downloaded, target, "--configfile", file)
    assert counts["replay_run"] == (20 + 11 + 8) * 6 and counts["predict_row"] == (20 + 11 + 8) * 3


def test_three_models_and_150_tasks(tmp_path):
    """More tasks than in the paper: 450 rows and 1,800 replay runs, planned for a cluster."""
    splits = ["test"] * 25 + ["train"] * 125
    lines = [f"t{i},g{i % 3},flan:t{i},{split}" for i, split in enumerate(splits)]
    (tmp_path / "tasks.csv").write_text("name,group,source,split\n" + "\n".join(lines))
    hub = {"kind": "hub", "path": "someone/flan", "by": "task"}
    strategies = ["none", "random", "column_mean", "additive", "knn", "mf", "gaussian", "oracle"]
    experiment = {
        "experiment": "large",
        "tasks": "tasks.csv",
        "sources": {"flan": hub, "dolma": {**hub, "text": "{text}", "by": None}},
        "upstream": {"examples": 10_000, "domains": {"dolma": "dolma:"}},
        "models": {f"m{i}": {"source": "hub", "path": f"someone/m{i}"} for i in range(3)},
        "replay": {"strategies": strategies, "seeds": [0, 1, 2]},
    }
    (tmp_path / "large.yaml").write_text(yaml.safe_dump(experiment))
    file = str(tmp_path / "large.yaml")
    counts = planned(tmp_path, "--configfile", file, profile="profiles/slurm")
    assert counts["measure_row"] == 3 * 150
    assert counts["replay_run"] == 3 * 25 * 3 * len(strategies)
