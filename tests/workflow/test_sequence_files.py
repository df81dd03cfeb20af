"""The shipped experiments on orders of tasks: they hold the published orders, load and plan."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml
from helpers.experiment import ROOT, job_counts

from lethe.config.loading import load_experiment

pytestmark = pytest.mark.xdist_group("other workflow")

FOLDER = ROOT / "experiments/sequences"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
TRACE = "C-STANCE FOMC MeetingBank Py150 ScienceQA NumGLUE-cm NumGLUE-ds 20Minuten"
# The orders in the authors' code, as names or, for SuperNI, as numbers.
PUBLISHED = {
    ("o-lora", "order1"): "dbpedia amazon yahoo agnews",
    ("o-lora", "order2"): "dbpedia amazon agnews yahoo",
    ("o-lora", "order3"): "yahoo amazon agnews dbpedia",
    ("long", "order4"): "yelp amazon mnli cb copa qqp rte imdb sst2 dbpedia agnews yahoo multirc "
    "boolq wic",
    ("long", "order5"): "mnli cb wic copa qqp boolq rte imdb yelp amazon sst2 dbpedia agnews "
    "multirc yahoo",
    ("superni", "order1"): "1572 363 1290 181 002 1510 639 1729 073 1590 748 511 591 1687 875",
    ("superni", "order2"): "748 073 1590 639 1572 1687 591 363 1510 1729 181 511 002 1290 875",
    ("trace", "trace"): TRACE,
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with the shipped experiments, and stand-ins for the data of TRACE."""
    folder = tmp_path_factory.mktemp("shipped")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    for task in TRACE.split():
        path = folder / "data/TRACE" / task / "train.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps([{"prompt": "1 + 1 =", "answer": "2"}]))
    return folder


def read(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def test_the_orders_are_the_published_ones():
    assert {name for name, _ in PUBLISHED} == set(NAMES)
    for (name, order), tasks in PUBLISHED.items():
        found = read(name)["sequences"]["orders"][order]
        if name == "superni":
            found = [re.match(r"task(\d+)_", task)[1] for task in found]
        assert found == tasks.split()
    epochs = read("trace")["sequences"]["epochs"]
    assert [epochs[task] for task in TRACE.split()] == [5, 3, 7, 5, 3, 5, 5, 7]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_loads_and_plans_one_job_per_step(workspace, name):
    experiment = load_experiment(read(name), workspace, [FOLDER / f"{name}.yaml"])
    sequences = experiment.settings.sequences
    program = [sys.executable, "-m", "snakemake", "--cores", "4", "--dry-run", "--quiet", "rules"]
    folders = ["--snakefile", str(ROOT / "Snakefile"), "--directory", str(workspace)]
    process = subprocess.run(
        [*program, *folders, "--workflow-profile", str(ROOT / "profiles/default")]
        + ["--until", "gather_sequences"]
        + ["--configfile", str(workspace / f"experiments/sequences/{name}.yaml")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"LETHE_CACHE": str(workspace / "cache")},
        timeout=600,
    )
    assert process.returncode == 0, process.stdout
    counts = job_counts(process.stdout)
    runs = len(sequences.runs)
    orders = sequences.orders.values()
    assert counts["last_step"] == runs * len(orders)
    assert counts["sequence_step"] == runs * sum(len(order) - 1 for order in orders)
    assert counts["multitask_row"] == len({frozenset(order) for order in orders})
    assert counts["measure_row"] == len(experiment.tasks)
