"""Repeats of one fine-tune: trained with other seeds, and scored again in other batches."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lethe.data.examples import UpstreamExample
from lethe.errors import LetheError, RowError, RowsError
from lethe.matrix import rows

if TYPE_CHECKING:
    from lethe.measure.forgetting import Job


def repeat(
    job: "Job", upstream: Sequence[UpstreamExample], seed: int, measurements: int, task: str
) -> list[rows.Row]:
    """Trains again with the recipe's seed plus `seed`, and scores those weights once and again.

    The first row is measured in the same way as rows of Z. Each further row scores the same weights
    in batches of half as many tokens as the row before, so that only the engine's arithmetic
    differs.

    Raises
    ------
    LetheError
        If weights of a fine-tune with a router are to be scored again.
    """
    # Imported here: torch takes seconds, and reading repeats does without it.
    from lethe.engine.reader import Reader
    from lethe.measure.forgetting import measure_again

    if measurements and job.recipe.router is not None:
        raise LetheError(
            f"{task}: recipe.router does not go with noise.measurements, because the weights alone "
            "are measured again; set noise.measurements to 0"
        )
    recipe = job.recipe.model_copy(update={"seed": job.recipe.seed + seed})
    title = f"{task}, seed {seed}"
    model, tokenizer, row = replace(job, recipe=recipe).run(upstream, title=title)
    row = replace(row, about=row.about | {"task": task, "seed": seed, "measurement": 0})
    measured = [row]
    for number in range(1, measurements + 1):
        scoring = job.scoring_of_base().halved(number)
        reader = Reader(model, tokenizer, scoring)
        again = measure_again(reader, upstream, row, title=f"{title}, again")
        labels = {"measurement": number, "tokens_per_batch": scoring.budget}
        measured.append(replace(again, about=again.about | labels))
    return measured


def gather(
    measured: Mapping[str, Path], repeated: Sequence[Path]
) -> tuple[dict[str, np.ndarray], list[np.ndarray], list[str]]:
    """Reads the repeats of a few rows.

    Parameters
    ----------
    measured
        task -> the file of its row in Z.
    repeated
        The files of all tasks' repeats.

    Returns
    -------
    trainings
        task -> forgetting (trainings, N) in nats of its trainings, the row in Z first.
    measurements
        Forgetting (measurements, N) in nats of each training that was measured more than once.
    example_ids
        The ids of the N examples.

    Raises
    ------
    RowError
        Naming, in one message, every file that is missing or broken, and every repeat that is of
        another task, or was measured on other examples or with other settings than the row.
    """
    problems: list[str] = []
    first: dict[str, rows.Row] = {}
    for task, path in measured.items():
        if (row := _read_or_note(path, problems)) is not None:
            first[task] = row
    usable: list[rows.Row] = []
    for path in repeated:
        if (row := _read_or_note(path, problems)) is None:
            continue
        problem = _repeat_problem(row, path, measured=measured, first=first)
        if problem is None:
            usable.append(row)
        else:
            problems.append(problem)
    if problems:
        files = f"{len(measured)} rows and {len(repeated)} repeats"
        raise RowsError("noise", problems, files=files)
    trainings = {task: [row.forgetting] for task, row in first.items()}
    scored: dict[tuple[str, int], list[np.ndarray]] = {}
    for row in usable:
        scored.setdefault((row.about["task"], row.about["seed"]), []).append(row.forgetting)
        if row.about["measurement"] == 0:
            trainings[row.about["task"]].append(row.forgetting)
    ids = next(iter(first.values())).example_ids
    stacked = {task: np.stack(lines).astype(np.float64) for task, lines in trainings.items()}
    groups = [np.stack(lines).astype(np.float64) for lines in scored.values() if len(lines) > 1]
    return stacked, groups, ids


def _read_or_note(path: Path, problems: list[str]) -> rows.Row | None:
    """The row in a file; None, with a problem appended, if it cannot be read."""
    try:
        return rows.read_row(path)
    except RowError as error:
        problems.append(str(error))
        return None


def _repeat_problem(
    row: rows.Row, path: Path, *, measured: Mapping[str, Path], first: Mapping[str, rows.Row]
) -> str | None:
    """The reason why a repeat cannot be compared with its task's row, if there is one."""
    if not {"task", "seed", "measurement"} <= row.about.keys():
        return f"{path}: is not a repeat, because it names no task, seed and measurement"
    task = row.about["task"]
    if task not in measured:
        return f"{path}: is a repeat of {task!r}, which is none of the rows; was it renamed?"
    original = first.get(task)
    if original is None:
        # The task's row is a problem by itself.
        return None
    ids = next(iter(first.values())).example_ids
    if row.example_ids != ids or _but_seed(row) != _but_seed(original):
        return f"{path}: measured on other examples or with other settings than {measured[task]}"
    return None


def _but_seed(row: rows.Row) -> dict[str, Any]:
    recipe = {key: value for key, value in row.settings["recipe"].items() if key != "seed"}
    return {**row.settings, "recipe": recipe}
