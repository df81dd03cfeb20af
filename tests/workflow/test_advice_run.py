"""Advice on replay, and shares of a fine-tune, through the graph."""

import pandas as pd
import pytest

pytestmark = pytest.mark.xdist_group("workflow")


def test_every_task_is_advised_from_the_replay_runs_of_the_others(copied):
    with open(copied.folder / "tasks.csv", "a", encoding="utf-8") as table:
        table.write("more,numbers,local:add.jsonl,train\n")
    with copied.edit() as settings:
        del settings["models"]["pythia"]
        settings["replay"] |= {"strategies": ["none", "random"], "tasks": "all"}
        settings["replay"]["variants"] = {"line": {"strategy": "random", "interpolate": [0.5, 1]}}
        settings["replay"] |= {"prediction": "additive", "advise": {"trade": [0.5, 2]}}
    copied.run()
    advice = pd.read_csv(copied.results / "olmo/replay_advice.csv", keep_default_na=False)
    assert len(advice) == 2 * 5
    assert set(advice.run) <= {"none", "random", "line-0.5", "line-1"}
    runs = pd.read_csv(copied.results / "olmo/replay.csv").set_index(["strategy", "task"])
    assert set(runs.loc["line-0.5"].index) == set(advice.task)
    measured = ["heldout_forgetting", "eval_loss_after"]
    assert (runs.loc["line-1", measured] == runs.loc["random", measured]).all(axis=None)
    score = pd.read_csv(copied.results / "olmo/replay_advice_score.csv")
    assert set(score.reference) == {"best in hindsight", "best on average"}
    assert (score.tasks == 5).all()
    assert (score[score.reference == "best in hindsight"].difference >= 0).all()
    assert "advice for each task from the other tasks" in (
        copied.results / "report.html"
    ).read_text("utf-8")
    assert copied.planned() == {}
