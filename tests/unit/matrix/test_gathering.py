import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lethe.config.task_table import Task
from lethe.data.examples import Example, write_examples
from lethe.engine.checkpoints import fingerprint
from lethe.errors import RowError
from lethe.matrix import gathering, rows

TASKS = ("sums", "poems", "rivers")
SUMMARY = dict.fromkeys(rows._SUMMARY_KEYS, 1)


def examples(task):
    return [Example(prompt=f"{task} {number}", answer="yes") for number in range(3)]


def data_hashes(task):
    hashes = [example.digest() for example in examples(task)]
    return {"train": fingerprint(hashes), "evaluation": fingerprint(hashes)}


def measured(examples_of, draw, **about):
    rng = np.random.default_rng(draw)
    before, after = rng.random((2, 6), dtype=np.float32)
    return rows.Row(
        example_ids=[f"e{number}" for number in range(6)],
        loss_before=before,
        loss_after=after,
        n_tokens=np.ones(6, dtype=np.int32),
        settings={"recipe": {"lr": 1e-3}},
        about=SUMMARY | {"data": data_hashes(examples_of), "versions": {"lethe": "0.1.0"}} | about,
    )


@pytest.fixture
def finished(tmp_path):
    """Rows of one model as they lie in results/<experiment>, with their tasks' examples."""
    for seed, task in enumerate(TASKS):
        for name in ("train", "eval"):
            write_examples(tmp_path / f"tasks/{task}/{name}.parquet", examples(task))
        row = gathering.with_identity(measured(task, seed), model="olmo", task=task)
        rows.write_row(tmp_path / f"olmo/rows/{task}.parquet", row)
    files = {task: tmp_path / f"olmo/rows/{task}.parquet" for task in TASKS}
    return SimpleNamespace(folder=tmp_path, files=files)


def without_identity(path):
    """Rewrites a row as earlier versions wrote it."""
    row = rows.read_row(path)
    about = {key: value for key, value in row.about.items() if key not in ("model", "task")}
    rows.write_row(path, replace(row, about=about))


def refusal(finished, **arguments):
    with pytest.raises(RowError) as caught:
        gathering.gather_row_files(finished.files, **{"model": "olmo"} | arguments)
    return str(caught.value)


def test_rows_that_are_what_they_are_named_are_gathered_in_order(finished):
    gathered = gathering.gather_row_files(finished.files, model="olmo")
    assert gathered.matrix.tasks == list(TASKS)
    np.testing.assert_array_equal(gathered.matrix.values[1], measured("poems", 1).forgetting)


def test_the_hash_of_examples_is_the_one_that_a_job_stores(finished):
    path = finished.folder / "tasks/poems/train.parquet"
    assert gathering.examples_digest(path) == data_hashes("poems")["train"]


def test_a_row_of_another_task_or_model_is_refused_by_name(finished):
    finished.files["poems"].write_bytes(finished.files["sums"].read_bytes())
    message = refusal(finished)
    assert "poems.parquet: was measured for task 'sums', expected 'poems'" in message
    assert "sums.parquet" not in message
    assert "was measured for model 'olmo', expected 'pythia'" in refusal(finished, model="pythia")


def test_an_earlier_row_is_compared_by_the_examples_it_was_measured_on(finished, caplog):
    for path in finished.files.values():
        without_identity(path)
    with caplog.at_level(logging.WARNING):
        gathering.gather_row_files(finished.files, model="olmo")
    assert not caplog.messages
    finished.files["poems"].write_bytes(finished.files["sums"].read_bytes())
    message = refusal(finished)
    assert "poems.parquet: was measured on other train examples" in message
    assert "sums.parquet: was" not in message


def test_an_earlier_row_that_nothing_proves_is_gathered_and_said(finished, caplog):
    without_identity(finished.files["poems"])
    for name in ("train", "eval"):
        (finished.folder / f"tasks/poems/{name}.parquet").unlink()
    with caplog.at_level(logging.WARNING):
        gathering.gather_row_files(finished.files, model="olmo")
    (message,) = caplog.messages
    assert "poems.parquet: does not say which task" in message


def test_copies_without_any_other_proof_are_refused(finished):
    for task in ("sums", "poems"):
        for name in ("train", "eval"):
            (finished.folder / f"tasks/{task}/{name}.parquet").unlink()
        without_identity(finished.files[task])
    finished.files["poems"].write_bytes(finished.files["sums"].read_bytes())
    message = refusal(finished)
    assert "poems.parquet: repeats" in message and "copy" in message


def test_every_broken_missing_and_empty_row_is_named_in_one_message(finished):
    finished.files["sums"].write_bytes(finished.files["sums"].read_bytes()[:2000])
    finished.files["poems"].unlink()
    row = rows.read_row(finished.files["rivers"])
    nothing = np.full(6, np.nan, dtype=np.float32)
    rows.write_row(finished.files["rivers"], replace(row, loss_after=nothing))
    message = refusal(finished)
    assert "3 problem(s) with its 3 rows" in message
    assert "sums.parquet: not a readable row" in message
    assert "poems.parquet: not a readable row (there is no such file)" in message
    assert "rivers.parquet: no example has a value" in message
    assert "delete" not in message


def test_other_settings_are_named_beside_broken_rows(finished):
    finished.files["sums"].write_bytes(b"PAR1")
    row = rows.read_row(finished.files["poems"])
    other = replace(row, settings={"recipe": {"lr": 2.0}})
    rows.write_row(finished.files["poems"], other)
    message = refusal(finished, settings={"recipe": {"lr": 1e-3}})
    assert "sums.parquet: not a readable row" in message
    assert "poems.parquet: recipe.lr: 2.0, expected 0.001" in message


def test_rows_of_several_versions_are_gathered_and_said(finished, caplog):
    table = {task: Task(name=task, group="g", split="train") for task in TASKS}
    gathered = gathering.gather_row_files(finished.files, model="olmo")
    assert "lethe_version" not in gathering.summarise_rows(gathered, table)[0]
    row = rows.read_row(finished.files["poems"])
    earlier = replace(row, about=row.about | {"versions": {"lethe": "0.0.9"}})
    rows.write_row(finished.files["poems"], earlier)
    with caplog.at_level(logging.WARNING):
        gathered = gathering.gather_row_files(finished.files, model="olmo")
    assert "several versions of lethe (0.0.9, 0.1.0)" in caplog.text
    lines = gathering.summarise_rows(gathered, table)
    assert [line["lethe_version"] for line in lines] == ["0.1.0", "0.0.9", "0.1.0"]


@pytest.fixture
def run_files(tmp_path):
    """Runs with replay as they lie in results/<experiment>/<model>."""
    files = []
    for seed in range(3):
        path = tmp_path / f"replay/random/poems-seed{seed}.parquet"
        rows.write_row(path, measured("poems", seed, strategy="random", task="poems", seed=seed))
        files.append(path)
    return files


def test_runs_with_replay_are_read_in_their_order(run_files):
    runs = gathering.read_replay_runs(run_files)
    assert [row.about["seed"] for row in runs] == [0, 1, 2]


def test_every_broken_and_foreign_run_is_named_in_one_message(run_files):
    run_files[0].write_bytes(run_files[1].read_bytes())
    run_files[1].write_bytes(b"PAR1")
    run_files[2].unlink()
    with pytest.raises(RowError) as caught:
        gathering.read_replay_runs(run_files)
    message = str(caught.value)
    assert "3 problem(s) with 3 runs" in message
    assert "poems-seed0.parquet: is the run random/poems-seed1" in message
    assert "poems-seed1.parquet: not a readable row" in message
    assert "poems-seed2.parquet: not a readable row (there is no such file)" in message


def test_a_row_without_replay_among_the_runs_is_named(run_files):
    rows.write_row(run_files[1], measured("poems", 7))
    with pytest.raises(RowError, match="seed1.parquet: is not a run with replay"):
        gathering.read_replay_runs(run_files)


def test_a_run_of_another_machine_is_named_unless_mixed_machines_are_allowed(run_files):
    row = rows.read_row(run_files[1])
    versions = row.about["versions"] | {"torch": "1.0"}
    rows.write_row(run_files[1], replace(row, about=row.about | {"versions": versions}))
    with pytest.raises(RowError, match="seed1.parquet: versions.torch is '1.0', but.*mixed_mach"):
        gathering.read_replay_runs(run_files)
    assert len(gathering.read_replay_runs(run_files, mixed_machines=True)) == 3


def test_a_run_of_another_model_or_of_other_examples_is_named(run_files):
    row = rows.read_row(run_files[1])
    rows.write_row(run_files[1], replace(row, settings=row.settings | {"model": {"path": "other"}}))
    row = rows.read_row(run_files[2])
    rows.write_row(run_files[2], replace(row, about=row.about | {"data": data_hashes("sums")}))
    with pytest.raises(RowError) as caught:
        gathering.read_replay_runs(run_files)
    message = str(caught.value)
    assert "poems-seed1.parquet: differs from the first run in `model`" in message
    assert "poems-seed2.parquet: was trained or evaluated on other examples" in message
