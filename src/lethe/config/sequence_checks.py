"""Checks of the section sequences against the task table, the models and the section replay."""

from lethe.config import Experiment
from lethe.config.messages import suggest
from lethe.config.replay_settings import ReplayRun
from lethe.config.sequence_settings import WITHOUT_REPLAY, SequenceRun
from lethe.config.task_table import Task


def sequence_problems(settings: Experiment, tasks: dict[str, Task]) -> list[str]:
    """Problems of the section sequences, each beginning with the key concerned."""
    if settings.sequences is None:
        return []
    return [
        *_unknown_names(settings, tasks),
        *_bad_runs(settings, tasks),
    ]


def _unknown_names(settings: Experiment, tasks: dict[str, Task]) -> list[str]:
    sequences = settings.sequences
    problems = []
    in_orders: set[str] = set()
    for order, members in sequences.orders.items():
        key = f"sequences.orders.{order}"
        in_orders.update(members)
        for task in members:
            if task in settings.leave_out:
                problems.append(
                    f"{key}: {task!r} is left out by leave_out; take it out of one list"
                )
            elif tasks and task not in tasks:
                problems.append(f"{key}: {task!r} is not in the task table{suggest(task, tasks)}")
    for task in sequences.epochs:
        if task not in in_orders:
            problems.append(
                f"sequences.epochs.{task}: is a task of no order{suggest(task, in_orders)}"
            )
    for model in sequences.models or []:
        if model not in settings.models:
            problems.append(
                f"sequences.models: {model!r} is no model of this experiment"
                f"{suggest(model, settings.models)}"
            )
    return problems


def _bad_runs(settings: Experiment, tasks: dict[str, Task]) -> list[str]:
    problems = []
    for name, run in settings.sequences.runs.items():
        key = f"sequences.runs.{name}"
        names = settings.replay.names if settings.replay else []
        if run.replay != WITHOUT_REPLAY and run.replay not in names:
            listed = ", ".join(names) or "there is no section replay"
            problems.append(
                f"{key}.replay: {run.replay!r} is neither a strategy nor a variant of the section "
                f"replay ({listed}){suggest(run.replay, names)}"
            )
            continue
        replay = settings.sequences.replay_run(name, settings.replay)
        problems += _bad_earlier(key, run, replay)
        problems += _unmergeable(key, settings, replay)
        if isinstance(replay.interpolate, list):
            problems.append(
                f"{key}.replay: {run.replay!r} has several shares in `interpolate`, but one model "
                "is handed on; give a variant with one share"
            )
        if replay.prediction_method is not None:
            problems += _unpredicted_tasks(name, settings, tasks, replay)
    return problems


def _bad_earlier(key: str, run: SequenceRun, replay: ReplayRun) -> list[str]:
    if not run.earlier:
        return []
    if not replay.replays:
        return [
            f"{key}.earlier: is {run.earlier:g}, but {run.replay!r} replays nothing; name a replay "
            "run that replays, or give earlier 0"
        ]
    if replay.chooses_during_training:
        return [
            f"{key}.earlier: strategy {replay.strategy} chooses upstream examples while the "
            "training runs; give another strategy, or earlier 0"
        ]
    if replay.objective != "text":
        return [
            f"{key}.earlier: objective {replay.objective} would keep the base model's answers on "
            "the earlier tasks and so undo them; name a replay run with objective text"
        ]
    return []


def _unmergeable(key: str, settings: Experiment, replay: ReplayRun) -> list[str]:
    """Recipes whose result is more than a model's weights, so that no step could hand it on."""
    for model in settings.sequences.of_models(list(settings.models)):
        changes = settings.models[model].recipe.model_dump(exclude_unset=True)
        values = settings.recipe.model_dump() | changes | replay.recipe_changes
        if values["method"] == "memory" or values.get("router") is not None:
            return [
                f"{key}: a memory or a router stands beside the weights of {model}, and a step "
                "hands on weights only; follow the orders with method full or lora, and without "
                "router"
            ]
    return []


def _unpredicted_tasks(
    name: str, settings: Experiment, tasks: dict[str, Task], replay: ReplayRun
) -> list[str]:
    """Training tasks, whose forgetting is not predicted, in the orders that a run follows."""
    tested = settings.replay.tested_tasks(tasks)
    problems = []
    for order, members in settings.sequences.orders_of(name).items():
        unpredicted = [task for task in members if task in tasks and task not in tested]
        if unpredicted:
            problems.append(
                f"sequences.runs.{name}.replay: {replay.name!r} draws by predictions, but "
                f"{unpredicted[0]!r} of the order {order!r} is a training task; set replay.tasks: "
                "all, which predicts every task from the others"
            )
    return problems
