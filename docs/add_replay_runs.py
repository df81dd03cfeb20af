"""Adds finished replay runs to the tables that earlier sittings have kept.

A study of many hours is not always run on one machine in one go. What an earlier sitting has kept
of it are its tables. This adds the runs that are finished now, and compares all of them again:

    python docs/add_replay_runs.py experiments/replay-study.yaml docs/lab/tables/replay-study

A run is finished if it has all tasks and all seeds. At least one job of a kept run must have been
run again here, with the same result. Only then do both sittings have the same base model and data.

The tables do not keep the forgetting of each example. So only runs of which all jobs are here have
intervals over tasks and examples. An experiment with `replay.advise` is advised again, from its Z
and predictions here.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from collect_tables import provenance, write

from lethe.analysis.rises import RunKey
from lethe.config.loading import load_experiment
from lethe.config.replay_settings import Replay
from lethe.config.yaml_file import read_yaml
from lethe.data.examples import read_upstream
from lethe.matrix.forgetting_matrix import read_matrix
from lethe.matrix.gathering import read_replay_runs
from lethe.replay.advice import advise_from_tables, score_advice
from lethe.replay.comparison import compare
from lethe.replay.contrast_tests import compare_planned
from lethe.replay.frontier import compare_at_equal_loss
from lethe.replay.planned_contrasts import (
    frontier_runs,
    plan_contrasts,
    primary_run,
    runs_by_frontier,
)
from lethe.replay.predictions import read_predictions
from lethe.replay.runs import GatheredRuns, gather_runs
from lethe.workflow import ResultFiles, results_folder

JOB = ["strategy", "task", "seed"]
# What a job that is run again must repeat, and how closely: the tables are rounded.
REPEATED = ["heldout_forgetting", "eval_loss_after"]
TOLERANCE = 1e-6


def main(experiment: Path, folder: Path) -> None:
    """Adds to `folder/<model>/`, for each model of `experiment`.

    Raises
    ------
    SystemExit
        If no kept job was run again, or if one has another result here.
    """
    loaded = load_experiment(read_yaml(experiment), files=[experiment])
    results = Path(results_folder(loaded.settings.experiment))
    files = ResultFiles(loaded, str(results))
    for model in loaded.settings.models:
        jobs = [Path(file) for file in files.replay_runs(model) if Path(file).exists()]
        predictions = [
            Path(file) for file in files.predictions(model, loaded.settings.replay.prediction)
        ]
        add_runs(loaded.settings.replay, jobs, results, folder / model, predictions)


def add_runs(
    replay: Replay,
    jobs: list[Path],
    results: Path,
    folder: Path,
    predictions: Sequence[Path] = (),
) -> None:
    """Adds the finished runs among `jobs` to the tables of one model in `folder`.

    `predictions` are those that an advice is made from.
    """
    kept_file = folder / "replay.parquet"
    kept = pd.read_parquet(kept_file)
    gathered = read_jobs(jobs, results, noise_floor=float(kept.noise_floor.iloc[0]))
    measured = pd.DataFrame(gathered.records)
    check_repeats(kept, measured, kept_file)
    jobs_of_a_run = count_jobs(kept).max()
    new = finished(measured[~measured.strategy.isin(kept.strategy)], jobs_of_a_run)
    together = pd.concat([kept, new])
    order = {run.name: place for place, run in enumerate(replay.results())}
    together = together.sort_values("strategy", key=lambda names: names.map(order), kind="stable")
    made_by = json.loads(pq.read_schema(kept_file).metadata[b"made_by"])
    added = list(new.strategy.unique())
    sitting = {"runs": added, "files": len(jobs), **provenance(jobs)}
    made_by["added"] = [*made_by.get("added", []), sitting]
    tables = compare_all(replay, together, complete_runs(gathered, jobs_of_a_run))
    if replay.advise is not None:
        z = results / folder.name / "Z.parquet"
        tables |= advise_all(replay, together, z, predictions, results / "upstream.parquet")
    for name, table in tables.items():
        write(folder / f"{name}.parquet", table, made_by)
    print(f"{folder.name}: added {', '.join(added) or 'nothing'}")


def read_jobs(jobs: list[Path], results: Path, noise_floor: float) -> GatheredRuns:
    """The jobs' runs; their rises are counted above `noise_floor` (nats)."""
    return gather_runs(
        read_replay_runs(jobs), read_upstream(results / "upstream.parquet"), noise_floor
    )


def complete_runs(gathered: GatheredRuns, jobs: int) -> dict[RunKey, Any]:
    """Forgetting of each held-out example, for the runs of which all jobs are here."""
    counts = count_jobs(pd.DataFrame(gathered.records))
    return {
        key: values for key, values in gathered.forgetting.items() if counts[key.strategy] == jobs
    }


def count_jobs(lines: pd.DataFrame) -> pd.Series:
    """Jobs by run."""
    return lines.groupby("strategy").size()


def finished(lines: pd.DataFrame, jobs: int) -> pd.DataFrame:
    """The lines of runs that have so many jobs; the names of the others are printed."""
    counts = count_jobs(lines)
    for name, count in counts[counts < jobs].items():
        print(f"left out: {name} is not finished ({count} of {jobs} jobs)")
    return lines[lines.strategy.isin(counts[counts == jobs].index)]


def check_repeats(kept: pd.DataFrame, measured: pd.DataFrame, kept_file: Path) -> None:
    """Ends the script unless jobs of kept runs were run again, all with the same result."""
    both = kept.merge(measured, on=JOB, suffixes=("", "_again"))
    if both.empty:
        sys.exit(f"{kept_file}: none of its jobs was run again, so nothing shows that they agree")
    for column in REPEATED:
        differ = both[(both[column] - both[f"{column}_again"]).abs() > TOLERANCE]
        for _, line in differ.head(1).iterrows():
            job = ", ".join(f"{key} {line[key]}" for key in JOB)
            sys.exit(
                f"{kept_file}: {column} of {job} is {line[column]:.6f} there and "
                f"{line[f'{column}_again']:.6f} here; the runs cannot be compared"
            )


def compare_all(
    replay: Replay, together: pd.DataFrame, forgetting: Mapping[RunKey, Any]
) -> dict[str, pd.DataFrame]:
    """The tables of the runs, by name; a frontier has the runs that there are."""
    records: list[Mapping[str, Any]] = together.to_dict("records")
    frontiers = frontier_runs(replay, measured=set(together.strategy))
    return {
        "replay": together,
        "replay_comparison": pd.DataFrame(compare(records, forgetting)),
        "replay_contrasts": pd.DataFrame(
            compare_planned(records, plan_contrasts(replay), forgetting)
        ),
        "replay_frontier": pd.DataFrame(
            compare_at_equal_loss(records, frontiers, runs_by_frontier(replay, frontiers))
        ),
    }


def advise_all(
    replay: Replay, together: pd.DataFrame, z: Path, predictions: Sequence[Path], upstream: Path
) -> dict[str, pd.DataFrame]:
    """The advised run of each task, from those that are measured, and its score."""
    measured = set(together.strategy)
    lines = advise_from_tables(
        together.to_dict("records"),
        read_matrix(z),
        read_predictions(predictions),
        read_upstream(upstream),
        settings={
            run.name: run.describe() for run in replay.advised_runs() if run.name in measured
        },
        trades=replay.advise.trade,
        primary=primary_run(replay),
    )
    advice = pd.DataFrame(lines)
    # A column may hold the words of one temperature and the number of another.
    advice["temperature"] = advice.temperature.astype("string")
    return {"replay_advice": advice, "replay_advice_score": pd.DataFrame(score_advice(lines))}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
