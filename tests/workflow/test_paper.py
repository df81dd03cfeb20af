"""Every experiment of the paper goes through the graph, as far as Z and its completion."""

import csv

import pytest
from helpers import paper
from helpers.experiment import ROOT
from test_dryrun import planned

FOLDER = ROOT / "experiments/paper"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "released")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    (folder / "experiments").symlink_to(ROOT / "experiments")
    with (FOLDER / "instruct.csv").open() as lines:
        tasks = list(csv.DictReader(lines))
    paper.downloads(folder, [task["name"] for task in tasks if task["group"] == "bbh"])
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_a_z_of_the_papers_is_a_row_a_task(name, place):
    target = f"results/{name}/{name}/completion.csv"
    counts = planned(place, target, "--configfile", str(FOLDER / f"{name}.yaml"))
    tasks = 142 if "instruct" in name else 85 if name in ("olmo-1b", "olmo-7b", "mpt-7b") else 19
    assert counts.pop("prepare_task") == counts.pop("measure_row") == tasks
    once = ("prepare_upstream", "locate_model", "score_base", "gather_matrix", "score_completion")
    assert counts == dict.fromkeys(once, 1)


def test_replay_is_run_on_every_task_that_is_predicted(place):
    target = "results/olmo-7b/olmo-7b/replay.csv"
    counts = planned(place, target, "--configfile", str(FOLDER / "olmo-7b.yaml"))
    assert counts["replay_run"] == (20 + 11 + 8) * 6 and counts["predict_rows"] == 3
