"""Right answers instead of losses, through the whole graph, with a base model that has some."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import tiny
from helpers.experiment import TINY, Workspace, make_experiment

from lethe.config.model_settings import Recipe
from lethe.data.examples import Example, read_upstream
from lethe.data.tokens import tokenise
from lethe.engine import models
from lethe.engine.training import fine_tune, stream
from lethe.matrix import forgetting_matrix, rows

pytestmark = pytest.mark.xdist_group("other workflow")


def answering_model(folder, examples):
    """Saves a model that learned every second one of these examples by heart, and nothing else."""
    texts = [f"{example.prompt}\n{example.answer}" for example in examples]
    tokenizer = models.train_tokenizer(texts * 3, 400)
    model = models.from_scratch("llama", tiny.sizes(hidden=48), len(tokenizer), 0)
    # So few examples are memorised on any processor.
    recipe = Recipe(steps=400, batch=8, lr=3e-3, warmup_steps=20, max_epochs=None)
    tokens = tokenise(tokenizer, examples[::2], 48).examples
    fine_tune(
        model, [tokens[i] for i in stream(len(tokens), 3200, 0, "teaching")], recipe, "teaching"
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def answered(tmp_path_factory) -> Workspace:
    folder = tmp_path_factory.mktemp("em") / "workspace"
    make_experiment(folder)
    examples = []
    for name in ("double", "halve"):
        lines = (folder / f"texts/{name}.jsonl").read_text("utf-8").splitlines()
        examples += [Example(**json.loads(line)) for line in lines]
    answering_model(folder / "taught", examples)
    tasks = "name,group,source,split\nadd,numbers,local:add.jsonl,train\n"
    tasks += "upper,words,local:upper.jsonl,train\nreverse,words,local:reverse.jsonl,test\n"
    (folder / "tasks.csv").write_text(tasks, "utf-8")
    experiment = TINY | {
        "models": {"taught": {"source": "folder", "path": "taught"}},
        "upstream": TINY["upstream"]
        | {"domains": {"double": "local:double.jsonl", "halve": "local:halve.jsonl"}},
        # As in the paper, a group trains longer than the others. At this rate about two in three
        # of the answers are lost, at three times the rate all.
        "recipe": TINY["recipe"] | {"group_steps": {"numbers": 14}, "lr": 0.003},
        "scoring": {"max_tokens": 24, "exact_match": {"max_new_tokens": 6}},
        "completion": TINY["completion"]
        | {"methods": ["column_mean", "additive", "mf", "gaussian", "logistic_fa"]},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(experiment), "utf-8")
    workspace = Workspace(folder)
    workspace.run()
    return workspace


def test_z_is_binary_and_knows_what_the_base_model_had_right(answered):
    z = forgetting_matrix.read_matrix(answered.results / "taught/Z.parquet")
    base = rows.read_row(answered.results / "taught/base.parquet")
    right = base.answers.exact_match_before == 1
    assert 8 <= right.sum() < 40
    np.testing.assert_array_equal(np.isfinite(z.values), np.tile(right, (3, 1)))
    lost = z.values[:, right]
    assert set(np.unique(lost)) == {0.0, 1.0}
    row = rows.read_row(answered.results / "taught/rows/add.parquet")
    np.testing.assert_array_equal(row.forgetting, z.values[z.tasks.index("add")])
    assert {"eval_exact_match_before", "eval_exact_match_after"} <= set(row.about)


def test_what_the_base_model_had_wrong_is_never_replayed_on_purpose(answered):
    z = forgetting_matrix.read_matrix(answered.results / "taught/Z.parquet")
    predicted = forgetting_matrix.read_matrix(
        answered.results / "taught/predictions/additive/reverse.parquet"
    )
    unknown = np.isnan(z.values).all(axis=0)
    np.testing.assert_array_equal(np.isnan(predicted.values[0]), unknown)
    run = rows.read_row(answered.results / "taught/replay/oracle/reverse-seed0.parquet")
    upstream = read_upstream(answered.results / "upstream.parquet")
    assert run.example_ids == [e.example_id for e in upstream if e.split == "heldout"]
    assert np.isnan(run.forgetting).sum() == unknown[[e.split == "heldout" for e in upstream]].sum()


def test_a_group_takes_its_own_steps_and_the_others_theirs(answered):
    files = {"add": "rows/add", "upper": "rows/upper", "replay": "replay/random/reverse-seed0"}
    measured = {
        key: rows.read_row(answered.results / f"taught/{f}.parquet") for key, f in files.items()
    }
    # A quarter of replayed examples is added to the twelve steps.
    assert {key: row.about["steps"] for key, row in measured.items()} == {
        **{"add": 14, "upper": 12, "replay": 15}
    }
    assert measured["add"].settings == measured["upper"].settings


def test_tables_and_page_speak_of_answers(answered):
    curve = pd.read_csv(answered.results / "taught/rank_curve.csv")
    assert len(curve[curve.predictor == "logistic_mf"].f1) == 3
    completion = pd.read_csv(answered.results / "taught/completion.csv")
    assert "logistic_fa" in set(completion.method)
    page = (answered.results / "report.html").read_text()
    assert "of the base model's right answers" in page.replace("&#39;", "'")
    assert "raised the upstream loss" not in page
    assert "F1 of the lost answers" in page
    replay = pd.read_csv(answered.results / "taught/replay.csv")
    assert replay.heldout_forgetting.between(0, 1).all()
