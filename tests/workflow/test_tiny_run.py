"""The complete graph on a tiny experiment."""

import os
import shutil

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers.experiment import Workspace, make_experiment

from lethe.data.examples import read_upstream
from lethe.matrix import forgetting_matrix, rows
from lethe.matrix.token_files import read_token_file

pytestmark = pytest.mark.xdist_group("workflow")


def test_the_tests_of_a_group_stay_with_one_worker(request):
    """Or each worker makes the experiment of the group again, which takes minutes."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("there is one process only")
    assert request.node.nodeid.endswith("@workflow")


def test_every_file_of_the_contract_is_made(finished):
    results = finished.results
    for model in ("olmo", "pythia"):
        for name in ("base.parquet", "Z.parquet", "rank_curve.csv", "completion.csv"):
            assert (results / model / name).stat().st_size > 0
        for name in ("replay.csv", "replay_comparison.csv", "predictions/additive/reverse.parquet"):
            assert (results / model / name).stat().st_size > 0
    for figure in ("overview", "heatmap", "rank_curves", "completion", "replay"):
        assert (results / f"plots/{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (results / f"plots/{figure}.svg").read_text()


def test_a_row_records_its_settings_and_a_fine_tune_learned(finished):
    row = rows.read_row(finished.results / "olmo/rows/reverse.parquet")
    assert len(row.example_ids) == 40
    assert row.about["eval_loss_after"] < row.about["eval_loss_before"]
    assert row.about["steps"] == row.settings["recipe"]["steps"] == 12
    assert {"torch", "lethe", "device"} <= set(row.about["versions"])
    assert np.abs(row.forgetting).max() > 0


def test_z_holds_the_rows_and_the_losses_before_are_those_of_the_base_model(finished):
    z = forgetting_matrix.read_matrix(finished.results / "olmo/Z.parquet")
    base = rows.read_row(finished.results / "olmo/base.parquet")
    for task, values in zip(z.tasks, z.values, strict=True):
        row = rows.read_row(finished.results / f"olmo/rows/{task}.parquet")
        np.testing.assert_array_equal(values, row.forgetting)
        np.testing.assert_array_equal(row.loss_before, base.loss_before)


def test_every_row_has_the_token_losses_of_its_most_forgotten_examples(finished):
    for path in finished.rows():
        row = rows.read_row(path)
        examples = read_token_file(path.parent.parent / "token_losses" / path.name)
        assert len(examples) == 20
        number = row.example_ids.index(examples[0].example_id)
        assert row.forgetting[number] == np.nanmax(row.forgetting)
        mean = np.nanmean(examples[0].after.astype(np.float32))
        np.testing.assert_allclose(mean, row.loss_after[number], rtol=2e-3)


def test_rows_without_token_losses_and_another_number_of_them_rerun_nothing(copied):
    """Rows of an older version have no such file."""
    shutil.rmtree(copied.results / "olmo/token_losses")
    assert copied.planned() == {}
    with copied.edit() as settings:
        settings["token_examples"] = 3
    assert not copied.planned().keys() - {"write_report"}
    before = copied.rows()
    target = copied.results / "olmo/rows/reverse.parquet"
    target.unlink()
    copied.run("--", "results/tiny/olmo/rows/reverse.parquet")
    assert len(read_token_file(copied.results / "olmo/token_losses/reverse.parquet")) == 3
    after = rows.read_row(target)
    assert after.settings == rows.read_row(copied.results / "olmo/rows/add.parquet").settings
    assert copied.rows().keys() == before.keys()


def test_replay_is_judged_on_examples_that_were_never_replayed(finished):
    upstream = read_upstream(finished.results / "upstream.parquet")
    heldout = [example.example_id for example in upstream if example.split == "heldout"]
    runs = sorted((finished.results / "olmo/replay").glob("*/*.parquet"))
    assert len(runs) == 4
    for path in runs:
        assert rows.read_row(path).example_ids == heldout
    none = rows.read_row(finished.results / "olmo/replay/none/reverse-seed0.parquet")
    row = rows.read_row(finished.results / "olmo/rows/reverse.parquet").select(heldout)
    np.testing.assert_array_equal(none.forgetting, row.forgetting)


def test_predictions_rest_on_replayable_probes_only(finished):
    z = forgetting_matrix.read_matrix(finished.results / "olmo/Z.parquet")
    predicted = forgetting_matrix.read_matrix(
        finished.results / "olmo/predictions/additive/reverse.parquet"
    )
    upstream = read_upstream(finished.results / "upstream.parquet")
    truth = z.values[z.tasks.index("reverse")]
    probed = np.flatnonzero(predicted.values[0] == truth)
    assert len(probed) >= 5
    assert all(upstream[i].split == "replayable" for i in probed)


def test_scores_have_their_spread_over_seeds_and_tasks(finished):
    scores = pd.read_csv(finished.results / "olmo/completion.csv")
    pooled = scores[scores.seed.astype(str) == "all"]
    groups = {"out_of_domain:numbers", "out_of_domain:words"}
    assert set(pooled.split) == {"in_domain", "out_of_domain"} | groups
    assert set(pooled.metric) >= {"rmse", "mae", "spearman", "f1", "auc", "top_1_percent"}
    assert pooled.sd_over_seeds.notna().all()


def test_the_page_needs_no_other_file_and_quotes_upstream_examples(finished):
    page = (finished.results / "report.html").read_text("utf-8")
    for section in ("Results", "Rank of Z", "Predicting", "Replay", "Upstream examples"):
        assert section in page
    assert 'src="data:image/webp;base64,' in page
    # The module of the example browser names addresses; the security policy lets it open none.
    assert "default-src 'none'" in page and "http://" not in page.split('<script type="module">')[0]
    assert "<blockquote>" in page


def test_snakemakes_own_report_can_be_made(finished, tmp_path):
    finished.run("--report", str(tmp_path / "snakemake.html"))
    report = (tmp_path / "snakemake.html").read_text("utf-8")
    # Snakemake sorts categories by name.
    categories = (
        "1 Overview",
        "2 What was forgotten",
        "3 What can be predicted",
        "4 What prevents it",
    )
    for category in categories:
        assert f'"{category}"' in report


def test_a_second_run_has_nothing_to_do(finished):
    assert finished.planned() == {}
    assert "Nothing to be done" in finished.run()


def test_a_model_in_shards_is_trained_by_a_process_for_each_gpu(copied):
    models = yaml.safe_load((copied.folder / "tiny.yaml").read_text())["models"]
    copied.change(models={"olmo": models["olmo"] | {"gpus": 2, "strategy": "fsdp"}})
    before = rows.read_row(copied.results / "olmo/rows/reverse.parquet")
    target = "results/tiny/olmo/rows/reverse.parquet"
    output = copied.run("--resources", "gpu=2", "--", target)
    assert "gpu=2" in output
    row = rows.read_row(copied.results / "olmo/rows/reverse.parquet")
    assert row.settings["recipe"]["processes"] == 2
    np.testing.assert_allclose(row.loss_after, before.loss_after, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(row.loss_before, before.loss_before)
    assert read_token_file(copied.results / "olmo/token_losses/reverse.parquet")


def test_weights_are_made_when_the_recipe_keeps_them(copied):
    copied.change(recipe={"keep_weights": True})
    assert copied.planned()["measure_row"] == len(copied.rows())
    copied.run("--", "results/tiny/olmo/weights/add")
    names = {path.name for path in (copied.results / "olmo/weights/add").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    # No row is measured again when weights are kept no more.
    copied.change(recipe={"keep_weights": False})
    assert "measure_row" not in copied.planned()


def test_predictions_are_compared_with_the_base_models_when_the_experiment_says_so(copied):
    before = copied.rows()
    with copied.edit() as settings:
        settings["prediction_changes"] = True
    copied.run("--", "results/tiny/olmo/prediction_changes.csv")
    z = forgetting_matrix.read_matrix(copied.results / "olmo/Z.parquet")
    kl = forgetting_matrix.read_matrix(copied.results / "olmo/Z_kl.parquet")
    assert kl.tasks == z.tasks and kl.example_ids == z.example_ids
    assert (kl.values >= 0).all()
    table = pd.read_csv(copied.results / "olmo/prediction_changes.csv")
    assert {"forgetting", "kl", "top1_lost", "entropy_change"} <= set(table.measure)
    # The rows are measured again, and are the same.
    row = rows.read_row(copied.results / "olmo/rows/add.parquet")
    assert row.settings["recipe"]["steps"] == 12
    assert copied.rows().keys() == before.keys()


def test_the_plan_counts_the_jobs_that_a_run_would_start(tmp_path):
    make_experiment(tmp_path / "new")
    workspace = Workspace(tmp_path / "new")
    workspace.change(recipe={"max_epochs": 3})
    with workspace.edit() as settings:
        settings["noise"] = {"tasks": ["reverse"], "trainings": 2, "measurements": 1}
    planned = workspace.planned()
    output = workspace.run("--", "plan")
    assert "pretrain_model" not in output.split("Job stats")[1].split("total")[0]
    lines = pd.read_csv(workspace.results / "plan.csv")
    for rule in ("pretrain_model", "score_base", "measure_row", "repeat_row", "replay_run"):
        assert lines[lines.rule == rule].jobs.sum() == planned[rule], rule
    assert set(pd.read_csv(workspace.results / "new_task.csv").way) == {
        *("exhaustive", "offline", "online")
    }


def test_the_ledger_sets_the_plan_beside_the_run(copied):
    copied.run("--", "ledger")
    table = pd.read_csv(copied.results / "ledger.csv").set_index(["model", "rule"])
    assert len(table) == 6
    for model in ("olmo", "pythia"):
        row = table.loc[(model, "measure_row")]
        assert row.jobs == row.jobs_planned == 4
        assert 0.2 < row.training_tokens / row.training_tokens_planned < 5
        assert row.seconds > 0 and 0.5 < row.disk_mb / row.disk_mb_planned < 6
    assert "replay_run" in (copied.results / "ledger.txt").read_text()
