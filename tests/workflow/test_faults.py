"""Killed runs and bad files: finished work stays, and the error names the bad file."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.experiment import ROOT, Workspace, make_experiment
from helpers.hub import Hub

from lethe.matrix import forgetting_matrix, rows

pytestmark = pytest.mark.xdist_group("workflow")


def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(finished, copied):
    """Killed while rows are being measured: finished rows are not repeated."""
    _only_two_rows(copied)
    process = subprocess.Popen(
        copied.command(),
        start_new_session=True,
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL},
    )
    deadline = time.monotonic() + 600
    while len(copied.rows()) < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    subprocess.run(["pkill", "-KILL", "-s", str(process.pid)])
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished_rows = copied.rows()
    assert 4 <= len(finished_rows) < 8
    for path in finished_rows:
        rows.read_row(path)  # Whole, though others were being written.
    assert "Removed the lock of process" in copied.run("--until", "gather_matrix")
    after = copied.rows()
    # A job that was in flight may have just finished when it was killed; it is repeated.
    unchanged = [path for path in finished_rows if after[path] == finished_rows[path]]
    assert len(unchanged) >= len(finished_rows) - 2
    for model in ("olmo", "pythia"):
        z = forgetting_matrix.read_matrix(finished.results / model / "Z.parquet")
        again = forgetting_matrix.read_matrix(copied.results / model / "Z.parquet")
        assert (z.values == again.values).all()


@pytest.mark.parametrize("command", ["snakemake", "lethe run"])
def test_after_kill_9_the_next_run_removes_the_lock_itself(tmp_path, command):
    make_experiment(tmp_path / "new")
    workspace = Workspace(tmp_path / "new")
    target = "results/tiny/tasks/add/train.parquet"
    arguments = [sys.executable, "-m", "lethe", "run", "tiny.yaml", "--cores", "1", target]
    if command == "snakemake":
        arguments = workspace.command("--", target)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "LETHE_CACHE": str(tmp_path)}
    surroundings = {"cwd": workspace.folder, "env": environment, "stderr": subprocess.STDOUT}
    first = subprocess.Popen(arguments, **surroundings, stdout=subprocess.DEVNULL)
    locks = workspace.folder / ".snakemake/locks"
    end = time.monotonic() + 120
    while len(list(locks.glob("*.owner"))) < 2:
        assert time.monotonic() < end and first.poll() is None, "the first run took no lock"
        time.sleep(0.02)
    first.kill()
    first.wait()
    # The Snakemake of a killed `lethe run` ends half a second later.
    time.sleep(1)
    second = subprocess.run(
        arguments, **surroundings, stdout=subprocess.PIPE, text=True, timeout=300, check=False
    )
    assert second.returncode == 0, second.stdout
    # The Snakemake of a killed `lethe run` may have removed its lock itself.
    if command == "snakemake":
        assert "Removed the lock of process" in second.stdout
    assert (workspace.folder / target).exists() and not list(locks.glob("*"))


def _only_two_rows(workspace) -> None:
    """Deletes all but two rows, and all that is made of rows, so that much is missing."""
    made_of_rows = [*workspace.results.glob("*/*.csv"), *workspace.results.glob("*/Z.parquet")]
    made_of_rows += [*workspace.results.glob("*.csv"), workspace.results / "report.html"]
    made_of_rows += workspace.results.glob("*/training_rows.parquet")
    for path in [*list(workspace.rows())[2:], *made_of_rows]:
        path.unlink()
    for folder in [*workspace.results.glob("*/predictions"), *workspace.results.glob("*/replay")]:
        shutil.rmtree(folder)
    shutil.rmtree(workspace.results / "plots")


def test_a_third_try_takes_smaller_batches_and_measures_the_same(copied):
    """The second try gets more memory; the third also gets smaller batches."""
    path = copied.results / "olmo/rows/add.parquet"
    first = rows.read_row(path)
    path.unlink()
    target = str(path.relative_to(copied.folder))
    for attempt, cut in (("2", False), ("3", True)):
        output = copied.run("--attempt", attempt, "--force", target)
        assert ("batches are cut to 1/2" in output) == cut, output
        again = rows.read_row(path)
        assert abs(again.loss_after - first.loss_after).max() <= (1e-4 if cut else 0)
        assert again.settings == first.settings


def test_a_truncated_row_is_named_and_not_averaged_in(copied):
    path = copied.results / "olmo/rows/add.parquet"
    path.write_bytes(path.read_bytes()[:-200])
    for _ in range(2):
        output = copied.run(succeed=False)
        assert "olmo/rows/add.parquet: not a readable row" in output
        assert "move it away and run again" in output
    path.unlink()
    copied.run("--until", "gather_matrix")


def test_a_task_that_fails_in_a_finished_experiment_fails_again_and_loses_nothing(copied):
    """The old report must not make the run look up to date, nor the slip cost a row."""
    path = copied.folder / "texts/add.jsonl"
    good = path.read_text()
    before = copied.rows()
    path.write_text(good + "\n{oops\n")
    for _ in range(2):
        output = copied.run(succeed=False)
        assert "add.jsonl, line 61: not JSON" in output
        assert "have left 2 earlier output(s) as they were" in output
    assert (copied.results / "report.html").exists()
    assert copied.planned()["prepare_task"] == 1
    path.write_text(good)
    assert copied.planned() == {}
    # Another file that can be read is another task, as ever.
    path.write_text(good.replace("+", "plus"))
    assert copied.planned()["measure_row"] == 2
    assert copied.rows() == before
    assert not list(copied.results.glob(".earlier"))


def test_rows_that_fail_or_are_stopped_leave_the_earlier_ones(copied):
    before = copied.rows()
    finished = copied.planned()
    copied.change(recipe={"lr": 1e30})
    output = copied.run(succeed=False)
    assert "lower recipe.lr" in output and "earlier output(s) as they were" in output
    assert copied.rows() == before
    assert copied.planned()["measure_row"] == 8
    copied.change(recipe={"lr": 0.01})
    assert copied.planned() == finished == {}

    copied.change(recipe={"steps": 13})
    process = _start_to_measure_again(copied, before)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=300) != 0
    measured = _changed(before)
    assert copied.rows().keys() == before.keys() and len(measured) < 8
    # Two jobs in flight may have just finished; they are repeated.
    assert 0 <= copied.planned()["measure_row"] - (8 - len(measured)) <= 2
    copied.change(recipe={"steps": 12})
    assert copied.planned()["measure_row"] == len(measured)


@pytest.mark.parametrize("end", ["kill -9", "Ctrl-C", "the end of its jobs"])
def test_a_run_that_can_put_nothing_back_leaves_it_to_the_next(copied, end):
    """The last two also end the reader of the messages, as it happens in `lethe run | tee log`."""
    before = copied.rows()
    copied.change(recipe={"steps": 13})
    if end == "kill -9":
        process = _start_to_measure_again(copied, before)
        process.kill()
    else:
        # As a shell does for a background job: only the jobs, which listen to Ctrl-C, end.
        deaf = end != "Ctrl-C"
        process = _start_to_measure_again(copied, before, stdout=subprocess.PIPE, deaf=deaf)
        process.stdout.close()
        os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=300) != 0
    copied.change(recipe={"steps": 12})
    planned = copied.planned()
    measured = _changed(before)
    assert copied.rows().keys() == before.keys() and 0 < len(measured) < 8
    assert planned["measure_row"] == len(measured)
    assert not list(copied.results.glob(".earlier"))


def _start_to_measure_again(
    workspace: Workspace,
    before: dict[Path, bytes],
    stdout: int = subprocess.DEVNULL,
    deaf: bool = False,
) -> subprocess.Popen:
    """Starts a run, deaf to Ctrl-C if asked, and waits until three of the rows have changed."""
    answer = signal.SIG_IGN if deaf else signal.SIG_DFL
    process = subprocess.Popen(
        workspace.command("--until", "measure_row"),
        start_new_session=True,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, answer),
    )
    end = time.monotonic() + 300
    while len(_changed(before)) < 3:
        assert time.monotonic() < end and process.poll() is None, "rows were not measured again"
        time.sleep(0.05)
    return process


def _changed(files: dict[Path, bytes]) -> list[Path]:
    """The files that exist with another content."""
    return [path for path in files if path.exists() and path.read_bytes() != files[path]]


def test_a_row_edited_by_hand_is_named(copied):
    path = copied.results / "olmo/rows/add.parquet"
    table = pq.read_table(path)
    values = table["forgetting"].to_numpy().copy()
    values[0] += 1
    column = table.schema.get_field_index("forgetting")
    edited = table.set_column(column, "forgetting", [values.astype("float32")])
    pq.write_table(edited.replace_schema_metadata(table.schema.metadata), path)
    output = copied.run(succeed=False)
    assert "olmo/rows/add.parquet" in output and "does not match its digest" in output


def test_a_bad_experiment_starts_nothing_and_lists_every_problem(copied):
    copied.change(recipe={"stepz": 3, "lr": -1}, replay={"ratio": 2})
    output = copied.run(succeed=False)
    for key in ("recipe.stepz", "recipe.lr", "replay.ratio"):
        assert key in output
    assert "did you mean 'steps'" in output and "nothing was started" in output
    assert "Traceback" not in output


def test_a_failing_task_leaves_the_others_running(copied):
    """One task with a bad line: the others are measured, the bad one is named."""
    with copied.edit() as settings:
        del settings["models"]["pythia"]
        settings["replay"]["strategies"] = ["none", "random"]
    with (copied.folder / "tasks.csv").open("a") as table:
        table.write("broken,numbers,local:broken.jsonl,train\n")
        table.write("halve,numbers,local:halve.jsonl,train\n")
    (copied.folder / "texts/broken.jsonl").write_text('{"prompt": "1", "answer": "2"}\n{oops\n')
    output = copied.run("--until", "measure_row", succeed=False)
    assert "broken.jsonl, line 2: not JSON" in output
    assert (copied.results / "olmo/rows/halve.parquet").exists()
    assert not (copied.results / "left_out.csv").exists()
    command = [sys.executable, "-m", "lethe", "run", "tiny.yaml", "--cores", "2"]
    process = subprocess.run(
        [*command, "--without-failed"],
        cwd=copied.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "going on without broken" in process.stderr
    assert "warning: the report and all tables are without broken" in process.stderr
    left_out = (copied.results / "left_out.csv").read_text()
    assert left_out == "task,group,split\nbroken,numbers,train\n"
    z = forgetting_matrix.read_matrix(copied.results / "olmo/Z.parquet")
    assert z.tasks == ["add", "double", "upper", "reverse", "halve"]
    assert "broken (numbers, train)" in (copied.results / "report.html").read_text("utf-8")


def test_two_runs_in_one_folder_are_told_apart(copied):
    """The second does not touch the files of the first; it reports the lock."""
    shutil.rmtree(copied.results / "plots")
    command = copied.command("--until", "draw_plots")
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        locks = copied.folder / ".snakemake/locks"
        end = time.monotonic() + 60
        while not (locks.is_dir() and any(locks.iterdir())):
            assert time.monotonic() < end and first.poll() is None, "the first run took no lock"
            time.sleep(0.05)
        assert "lock" in copied.run(succeed=False).lower()
        assert first.wait(timeout=300) == 0
    finally:
        first.kill()
    assert (copied.results / "plots/overview.png").is_file()


def test_yaml_that_would_run_something_runs_nothing(copied):
    evil = copied.folder / "evil"
    with (copied.folder / "tiny.yaml").open("a") as experiment:
        experiment.write(f"noise: !!python/object/apply:os.system ['touch {evil}']\n")
    output = copied.run("--dry-run", succeed=False)
    assert "tiny.yaml: 1 problem(s), nothing was started" in output and "not valid YAML" in output
    # Without our profile, Snakemake reads the file itself.
    output = copied.run("--dry-run", "--workflow-profile", "none", succeed=False)
    assert "not valid JSON or YAML" in output
    assert not evil.exists()


def test_base_losses_of_other_settings_are_not_subtracted(copied):
    """A file of another run in place of the base losses: newer, complete, and wrong."""
    base = copied.results / "olmo/base.parquet"
    other = rows.read_row(base)
    changed = {**other.settings, "scoring": {**other.settings["scoring"], "max_tokens": 20}}
    rows.write_row(base, replace(other, settings=changed))
    (copied.results / "olmo/rows/add.parquet").unlink()
    output = copied.run(succeed=False)
    assert "base losses were measured with other settings" in output
    assert "scoring" in output


def test_a_hub_that_goes_away_in_the_middle_takes_no_row_with_it(copied, model_folders, tmp_path):
    """First in the middle of a download; then when the model is there, before the next row."""
    hub = Hub("someone/tiny", model_folders["llama"]["path"], breaks=True)
    environment = hub.environment | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    # The hub's library reads these when it is imported.
    environment |= {"LETHE_WARM": ""}
    workspace = replace(copied, environment=environment)
    settings = {"source": "hub", "path": "someone/tiny", "resources": {"gpu": 0}}
    workspace.change(models={"hub": settings})
    expected = workspace.rows()
    first, second = (f"results/tiny/hub/rows/{task}.parquet" for task in ("add", "double"))
    output = workspace.run("--nocolor", first, succeed=False)
    assert "someone/tiny: cannot be loaded: the hub does not answer" in output
    hub.breaks = hub.gone = False
    workspace.run("--nocolor", first)
    expected[workspace.folder / first] = (workspace.folder / first).read_bytes()
    hub.stop()
    workspace.run("--nocolor", second)
    measured = workspace.rows()
    assert measured.pop(workspace.folder / second) and measured == expected
