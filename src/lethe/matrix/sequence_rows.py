"""Reads the rows of sequences of fine-tunes, and refuses files that are not those of their names.

A sequence is a matrix of forgetting of its own: one row per step, measured against the original
base model, and one column per upstream example.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lethe.config.sequence_settings import Sequences
from lethe.errors import RowError, RowsError
from lethe.matrix.rows import Row, read_row


@dataclass(frozen=True)
class TaskScores:
    """Scores of the T tasks of a sequence, in its order; higher is better.

    Attributes
    ----------
    after
        (T, T): after step t, the score on task i. NaN above the diagonal, where task i comes later.
    before
        (T,): the score on task i right before its own step.
    base
        (T,): the score of the base model on task i.
    single
        (T,): the score on task i of the base model fine-tuned on task i alone.
    """

    after: np.ndarray
    before: np.ndarray
    base: np.ndarray
    single: np.ndarray


@dataclass(frozen=True)
class MeasuredSequence:
    """One order, followed once.

    Attributes
    ----------
    order, run, seed
        The names of the order and of the way of training, and the number added to the seed.
    tasks
        The T tasks in their order.
    forgetting
        (T, N): rise of the loss of each upstream example after each step, against the base model,
        in nats; or right answers lost, where exact match is measured.
    scores
        Unit -> scores on the tasks: `nats` (minus the loss) and, where it is measured,
        `exact_match`.
    replayed
        (T,): number of replayed examples in each step.
    heldout_kl
        (T,): mean KL(base || model) of the held-out examples after each step, in nats per token;
        None if some step has not measured it.
    """

    order: str
    run: str
    seed: int
    tasks: list[str]
    forgetting: np.ndarray
    scores: Mapping[str, TaskScores]
    replayed: list[int]
    heldout_kl: list[float] | None = None


@dataclass(frozen=True)
class MultitaskFineTune:
    """The fine-tune on all tasks of an order mixed.

    Attributes
    ----------
    forgetting
        (N,): forgetting of each upstream example.
    scores
        Unit -> task -> score, as in `MeasuredSequence`.
    heldout_kl
        Mean KL(base || model) of the held-out examples, in nats per token; None if it was not
        measured.
    """

    order: str
    seed: int
    forgetting: np.ndarray
    scores: Mapping[str, Mapping[str, float]]
    heldout_kl: float | None = None


def read_sequences(
    files: Sequence[Path], settings: Sequences, single_rows: Mapping[str, Row]
) -> list[MeasuredSequence]:
    """Reads the steps of all sequences of a model.

    Parameters
    ----------
    files
        The rows of all steps, as the section sequences orders them: by run, order, seed and step.
    single_rows
        The rows of the single fine-tunes, by task.

    Raises
    ------
    RowError
        Naming, in one message, every row that is missing, broken, or of another step.
    """
    remaining = iter(files)
    problems: list[str] = []
    sequences = []
    for run, order, seed in _sequences_of(settings):
        tasks = settings.orders[order]
        steps = []
        for number, task in enumerate(tasks, start=1):
            path = next(remaining)
            expected = {"order": order, "run": run, "seed": seed, "step": number, "task": task}
            row = _read_step(path, expected, single_rows[task], problems)
            if row is not None:
                steps.append(row)
        if len(steps) == len(tasks):
            sequences.append(_sequence(steps, tasks, single_rows))
    if problems:
        raise RowsError("sequences", problems, files=f"{len(files)} steps")
    return sequences


def read_multitask(files: Sequence[Path]) -> list[MultitaskFineTune]:
    """Reads the fine-tunes on all tasks of an order mixed: `<order>/multitask-seed<seed>.parquet`.

    Raises
    ------
    RowError
        Naming, in one message, every file that is missing, broken, no such fine-tune, or that of
        another order or seed.
    """
    fine_tunes = []
    problems: list[str] = []
    for path in files:
        try:
            fine_tunes.append(_read_mixture(path))
        except RowError as error:
            problems.append(str(error))
    if problems:
        fine_tunes_on_all = f"{len(files)} fine-tunes on all tasks of an order mixed"
        raise RowsError("sequences", problems, files=fine_tunes_on_all)
    return fine_tunes


def _read_mixture(path: Path) -> MultitaskFineTune:
    row = read_row(path)
    if "task_losses" not in row.about or "order" not in row.about:
        raise RowError(f"{path}: is not a fine-tune on all tasks of an order mixed")
    order = row.about["order"]
    seed = row.about["seed"]
    if (order, f"multitask-seed{seed}") != (path.parent.name, path.stem):
        raise RowError(
            f"{path}: was measured for order {order!r} and seed {seed}; was the file renamed or "
            "copied?"
        )
    losses = row.about["task_losses"]
    scores = {"nats": {task: -loss for task, loss in losses.items()}}
    if "task_exact_match" in row.about:
        scores["exact_match"] = row.about["task_exact_match"]
    return MultitaskFineTune(
        order=order,
        seed=seed,
        forgetting=row.forgetting,
        scores=scores,
        heldout_kl=row.about.get("heldout_kl"),
    )


def _sequences_of(settings: Sequences) -> Iterator[tuple[str, str, int]]:
    """Run, order and seed of every sequence, in the order in which their files are listed."""
    for run in settings.runs:
        for order in settings.orders_of(run):
            for seed in settings.seeds:
                yield run, order, seed


def _read_step(
    path: Path, expected: Mapping[str, object], single: Row, problems: list[str]
) -> Row | None:
    """The row of a step; None, and a problem more, if it is not the expected one.

    It must measure the same examples as the row of the step's task learned alone.
    """
    try:
        row = read_row(path)
    except RowError as error:
        problems.append(str(error))
        return None
    for key, value in expected.items():
        if row.about.get(key) != value:
            problems.append(
                f"{path}: was measured for {key} {row.about.get(key)!r}, expected {value!r}; was "
                "the file renamed or copied?"
            )
            return None
    if row.example_ids != single.example_ids:
        problems.append(
            f"{path}: its {len(row.example_ids)} examples are not the {len(single.example_ids)} of "
            "the task's single row in their order"
        )
        return None
    return row


def _sequence(
    steps: Sequence[Row], tasks: Sequence[str], single_rows: Mapping[str, Row]
) -> MeasuredSequence:
    about = steps[0].about
    single = [single_rows[task] for task in tasks]
    scores = {"nats": _scores(steps, tasks, single, key="task_losses", prefix="eval_loss", sign=-1)}
    if "task_exact_match" in about:
        scores["exact_match"] = _scores(
            steps, tasks, single, key="task_exact_match", prefix="eval_exact_match", sign=1
        )
    divergences = [row.about.get("heldout_kl") for row in steps]
    return MeasuredSequence(
        order=about["order"],
        run=about["run"],
        seed=about["seed"],
        tasks=list(tasks),
        forgetting=np.array([row.forgetting for row in steps], dtype=np.float64),
        scores=scores,
        replayed=[row.about["replayed"] for row in steps],
        heldout_kl=None if None in divergences else divergences,
    )


def _scores(
    steps: Sequence[Row],
    tasks: Sequence[str],
    single: Sequence[Row],
    *,
    key: str,
    prefix: str,
    sign: int,
) -> TaskScores:
    """Scores in one unit: `key` of all tasks so far, `prefix` of a row's own task."""
    after = np.full((len(tasks), len(tasks)), np.nan)
    for number, row in enumerate(steps):
        for position, task in enumerate(tasks[: number + 1]):
            after[number, position] = sign * row.about[key][task]
    before = [sign * row.about[f"{prefix}_before"] for row in steps]
    base = [sign * row.about[f"{prefix}_before"] for row in single]
    alone = [sign * row.about[f"{prefix}_after"] for row in single]
    return TaskScores(
        after=after, before=np.array(before), base=np.array(base), single=np.array(alone)
    )
