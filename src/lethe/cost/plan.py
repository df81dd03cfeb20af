"""The cost of an experiment, estimated before any of it has run.

`lethe.cost.ledger` has the actual cost. Costs are products of counts (jobs per rule, tokens) and of
rates that a few steps gave (`lethe.cost.calibration`). They are tokens trained on and scored,
seconds, GPU-hours, core-hours, disk and money.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lethe.config.analysis_settings import NoiseSettings
from lethe.config.model_settings import Pretraining, Recipe
from lethe.config.replay_settings import Replay, ReplayRun
from lethe.config.sequence_settings import Sequences
from lethe.config.task_table import Task
from lethe.engine.training import planned_steps
from lethe.replay.draws import count_replayed
from lethe.replay.planned_contrasts import decision_sentence
from lethe.replay.sequence_step import recipe_with_epochs
from lethe.tables import as_text

# Work of the base model's forward pass, which KL replay adds, as a share of a training pass.
TEACHER_SHARE = 1 / 3


@dataclass(frozen=True)
class Sizes:
    """The sizes that decide the number of jobs and their length.

    Parameters
    ----------
    tasks
        Task by name.
    examples
        Number of upstream examples.
    heldout
        Number of upstream examples that are never replayed.
    directions
        True if fine-tunes are repeated to measure the direction of the weights.
    probes
        Number of probes that a prediction uses.
    """

    tasks: Mapping[str, Task]
    examples: int
    heldout: int
    noise: NoiseSettings | None = None
    replay: Replay | None = None
    directions: bool = False
    probes: int = 30
    sequences: Sequences | None = None


@dataclass(frozen=True)
class Machine:
    """GPUs and threads of one job of a model, and prices per hour; None means no price."""

    gpus: int
    threads: int
    gpu_hour: float | None = None
    core_hour: float | None = None

    def cost(self, seconds: float, on_gpu: bool) -> dict[str, float | None]:
        """GPU-hours, core-hours and money for this many seconds of jobs."""
        hours = seconds / 3600
        gpu_hours = hours * self.gpus if on_gpu else 0.0
        core_hours = hours * self.threads
        price = self.gpu_hour if on_gpu else self.core_hour
        money = None if price is None else price * (gpu_hours if on_gpu else core_hours)
        return {"gpu_hours": gpu_hours, "core_hours": core_hours, "money": money}


@dataclass(frozen=True)
class Work:
    """One job: tokens trained on, tokens scored, answers, bytes written, loads of the model."""

    trained: float = 0.0
    scored: float = 0.0
    answers: float = 0.0
    disk: float = 0.0
    loads: int = 1

    def seconds(self, calibration: Mapping[str, Any]) -> float:
        """Duration of the job in seconds, without the imports of Python packages."""
        return (
            self.loads * calibration["loads"] * calibration["load_seconds"]
            + self.trained / calibration["training_tokens_per_second"]
            + self.scored / calibration["scoring_tokens_per_second"]
            + self.answers * (calibration["answer_seconds"] or 0.0)
        )


class Estimate:
    """The work of all jobs of one model."""

    def __init__(
        self, sizes: Sizes, recipe: Recipe, calibration: Mapping[str, Any], model: str = ""
    ):
        self.model = model
        self.sizes = sizes
        self.recipe = recipe
        self.calibration = calibration
        self.measures_answers = calibration["answer_seconds"] is not None

    def jobs(self, pretraining: Pretraining | None = None) -> dict[str, list[Work]]:
        """The work of each job, by rule."""
        sizes = self.sizes
        jobs = {}
        if pretraining is not None:
            tokens = pretraining.steps * pretraining.batch * pretraining.context
            weights = self.calibration["weight_bytes"]
            jobs["pretrain_model"] = [Work(trained=tokens, disk=weights, loads=0)]
        # The base model answers twice, so that its batches are also those of the rows.
        jobs["score_base"] = [self._scoring(sizes.examples, rounds=2)]
        # Only the rows of Z keep weights.
        kept = self.calibration["weight_bytes"] if self.recipe.keep_weights else 0
        weights_of_row = Work(disk=kept, loads=0)
        jobs["measure_row"] = [_sum(self.row(task), weights_of_row) for task in sizes.tasks]
        if sizes.directions:
            jobs["measure_direction"] = [self._training(task, loads=2) for task in sizes.tasks]
        if sizes.noise is not None:
            rounds = 1 + sizes.noise.measurements
            repeats = [self.row(task, rounds) for task in sizes.noise.tasks]
            jobs["repeat_row"] = repeats * sizes.noise.trainings
        if sizes.replay is not None:
            jobs["replay_run"] = self._replay_runs(sizes.replay)
        if sizes.sequences is not None and sizes.sequences.of_models([self.model]):
            jobs["sequence_step"] = self._sequence_steps(sizes.sequences)
            if sizes.sequences.multitask:
                jobs["multitask_row"] = self._multitask_rows(sizes.sequences)
        return jobs

    def row(self, task: str, rounds: int = 1) -> Work:
        """One fine-tune and `rounds` measurements of all upstream examples."""
        return _sum(self._training(task), self._scoring(self.sizes.examples, rounds, files=rounds))

    def ways(self) -> dict[str, Work]:
        """The cost of a new task's forgetting, by the way to get it, for an average task.

        exhaustive: fine-tune, and score all upstream examples. offline: fine-tune, score the
        probes, and predict the rest. online: only score the probes, during a fine-tune that takes
        place anyway (protocol: paper, section 1.7).
        """
        training = _mean([self._training(task) for task in self.sizes.tasks])
        probes = self._scoring(self.sizes.probes, loads=0)
        all_examples = self._scoring(self.sizes.examples, loads=0)
        return {
            "exhaustive": _sum(training, all_examples),
            "offline": _sum(training, probes),
            "online": probes,
        }

    def _training(self, task: str, loads: int = 1, recipe: Recipe | None = None) -> Work:
        recipe = recipe or self.recipe
        counts = self.calibration["tasks"][task]
        steps = planned_steps(recipe, counts["examples"], self.sizes.tasks[task].group)
        tokens = steps * recipe.batch * counts["tokens"]
        # The task's own evaluation examples are scored before and after the fine-tune.
        return Work(
            trained=tokens * (1 + TEACHER_SHARE if recipe.prompt_kl else 1),
            scored=2 * counts["eval_tokens"],
            answers=2 * counts["eval_examples"] if self.measures_answers else 0,
            loads=loads,
        )

    def _scoring(self, examples: int, rounds: int = 1, files: int = 1, loads: int = 1) -> Work:
        tokens = examples * self.calibration["upstream_tokens"]
        # The losses of the base model are measured once, whereas answers are asked in each round.
        return Work(
            scored=tokens * files,
            answers=examples * rounds if self.measures_answers else 0.0,
            disk=files * examples * self.calibration["row_bytes"],
            loads=loads,
        )

    def _replay_runs(self, replay: Replay) -> list[Work]:
        tasks = replay.tested_tasks(self.sizes.tasks)
        works = []
        for run in replay.runs():
            for seed in replay.seeds:
                for task in tasks:
                    works.append(self._replay_run(run, seed, task))
        return works

    def _replay_run(self, run: ReplayRun, seed: int, task: str) -> Work:
        # Besides the fine-tuned model, every share of a list is scored.
        files = 1 + (len(run.interpolate) if isinstance(run.interpolate, list) else 0)
        scoring = self._scoring(self.sizes.heldout, files=files, loads=0)
        if run.equals_own_row(seed):
            # This run is the row itself, cut to the held-out examples.
            return Work(disk=scoring.disk, loads=0)
        recipe = run.apply_to(self.recipe)
        work = _sum(self._training(task, recipe=recipe), scoring)
        if run.heldout_kl:
            # A pass of the base model and one of the fine-tuned model.
            passes = 2 * files * self.sizes.heldout
            tokens = passes * self.calibration["upstream_tokens"]
            work = _sum(work, Work(scored=tokens, loads=0))
        return _sum(work, self._replayed(run, recipe, task))

    def _replayed(self, run: ReplayRun, recipe: Recipe, task: str) -> Work:
        """The additional work of a fine-tune that replays."""
        if not run.replays:
            return Work(loads=0)
        examples = self.calibration["tasks"][task]["examples"]
        steps = planned_steps(recipe, examples, self.sizes.tasks[task].group)
        replayed = count_replayed(steps * recipe.batch, run.ratio)
        probing = self._probe_passes(run, replayed) * self.calibration["upstream_tokens"]
        # Swapped examples take the place of new ones, and cost their teacher's pass only.
        share = 0.0 if run.accounting == "swap" else 1.0
        if run.objective != "text":
            share += TEACHER_SHARE
        tokens = share * replayed * self.calibration["upstream_tokens"]
        return Work(trained=tokens, scored=probing, loads=0)

    def _sequence_steps(self, sequences: Sequences) -> list[Work]:
        works = []
        for run_name in sequences.runs:
            run = sequences.replay_run(run_name, self.sizes.replay)
            for tasks in sequences.orders_of(run_name).values():
                for number in range(1, len(tasks) + 1):
                    work = self._sequence_step(run, tasks[:number], sequences)
                    # The weights of the last step stay.
                    if number == len(tasks):
                        weights = self.calibration["weight_bytes"]
                        work = _sum(work, Work(disk=weights, loads=0))
                    works += [work] * len(sequences.seeds)
        return works

    def _sequence_step(self, run: ReplayRun, tasks: Sequence[str], sequences: Sequences) -> Work:
        """A fine-tune on the last of these tasks, after which all of them are measured.

        A replayed example of an earlier task counts as many tokens as an upstream example.
        """
        task = tasks[-1]
        recipe = self._recipe_in_sequence(run.apply_to(self.recipe), task, sequences)
        work = _sum(self._training(task, recipe=recipe), self._scoring(self.sizes.examples))
        work = _sum(work, self._replayed(run, recipe, task))
        return _sum(work, self._evaluation(tasks[:-1]))

    def _multitask_rows(self, sequences: Sequences) -> list[Work]:
        works = []
        for order in dict.fromkeys(map(sequences.multitask_order, sequences.orders)):
            work = _sum(
                self._scoring(self.sizes.examples), self._evaluation(sequences.orders[order])
            )
            for task in sequences.orders[order]:
                recipe = self._recipe_in_sequence(self.recipe, task, sequences)
                work = _sum(work, self._training(task, recipe=recipe))
            works += [work] * len(sequences.seeds)
        return works

    def _recipe_in_sequence(self, recipe: Recipe, task: str, sequences: Sequences) -> Recipe:
        examples = self.calibration["tasks"][task]["examples"]
        return recipe_with_epochs(recipe, sequences.epochs.get(task), examples)

    def _evaluation(self, tasks: Sequence[str]) -> Work:
        """One measurement of the evaluation examples of these tasks."""
        counts = [self.calibration["tasks"][task] for task in tasks]
        answers = sum(count["eval_examples"] for count in counts) if self.measures_answers else 0
        return Work(scored=sum(count["eval_tokens"] for count in counts), answers=answers, loads=0)

    def _probe_passes(self, run: ReplayRun, replayed: int) -> int:
        """Forward passes over single examples that choosing this many replayed ones takes."""
        if run.strategy == "mir":
            replayable = self.sizes.examples - self.sizes.heldout
            return min(run.mir_candidates * replayed, replayable)
        return len(run.probe_after) * run.probes


def _sum(*works: Work) -> Work:
    total = Work(loads=0)
    for work in works:
        total = Work(
            trained=total.trained + work.trained,
            scored=total.scored + work.scored,
            answers=total.answers + work.answers,
            disk=total.disk + work.disk,
            # A job loads its model once for all of its work.
            loads=max(total.loads, work.loads),
        )
    return total


def _mean(works: Sequence[Work]) -> Work:
    total = _sum(*works)
    return Work(
        trained=total.trained / len(works),
        scored=total.scored / len(works),
        answers=total.answers / len(works),
        disk=total.disk / len(works),
        loads=total.loads,
    )


def plan_lines(
    model: str,
    jobs: Mapping[str, Sequence[Work]],
    *,
    calibration: Mapping[str, Any],
    machine: Machine,
) -> list[dict[str, Any]]:
    """Makes the lines of plan.csv, one per rule."""
    lines = []
    for rule, works in jobs.items():
        total = _sum(*works)
        seconds = sum(work.seconds(calibration) for work in works)
        line = {
            "model": model,
            "rule": rule,
            "jobs": len(works),
            "training_tokens": round(total.trained),
            "scoring_tokens": round(total.scored),
            "answers": round(total.answers),
            "seconds": seconds,
        }
        line |= machine.cost(seconds, on_gpu=calibration["device"] != "cpu")
        line["disk_mb"] = total.disk / 1e6
        lines.append(line)
    return lines


def new_task_lines(model: str, estimate: Estimate, machine: Machine) -> list[dict[str, Any]]:
    """Makes the lines of new_task.csv: the cost of a new task's forgetting, one line per way."""
    calibration = estimate.calibration
    seconds_by_way = {way: work.seconds(calibration) for way, work in estimate.ways().items()}
    lines = []
    for way, seconds in seconds_by_way.items():
        line = {"model": model, "way": way, "seconds": seconds}
        line |= machine.cost(seconds, on_gpu=calibration["device"] != "cpu")
        line["share_of_exhaustive"] = seconds / seconds_by_way["exhaustive"]
        lines.append(line)
    return lines


@dataclass(frozen=True)
class CostPlan:
    """Lines of plan.csv, lines (`ways`) of new_task.csv, and both as a text to read."""

    lines: list[dict[str, Any]]
    ways: list[dict[str, Any]]
    text: str


def make_plan(
    calibrations: Mapping[str, Mapping[str, Any]],
    models: Mapping[str, Mapping[str, Any]],
    *,
    tasks: Mapping[str, Task],
    splits: Mapping[str, int],
    sizes: Mapping[str, Any],
    prices: Mapping[str, Any],
) -> CostPlan:
    """Estimates the cost of an experiment.

    Parameters
    ----------
    calibrations
        Result of `lethe.cost.calibration.calibrate_model` by model.
    models
        By model: recipe, gpus, threads, pretraining (None: not pretrained here).
    tasks
        Task by name.
    splits
        Numbers of upstream examples that are `heldout` and `replayable`.
    sizes
        `noise`, `replay`, `directions` and, if there are any, `sequences`, as in `Sizes` but of
        JSON values.
    prices
        `gpu_hour`, `core_hour` (None: unknown), `currency`.
    """
    noise = NoiseSettings(**sizes["noise"]) if sizes["noise"] else None
    replay = Replay(**sizes["replay"]) if sizes["replay"] else None
    counted = Sizes(
        tasks=tasks,
        examples=sum(splits.values()),
        heldout=splits["heldout"],
        noise=noise,
        replay=replay,
        directions=sizes["directions"],
        probes=replay.probes if replay else Sizes.probes,
        sequences=Sequences(**sizes["sequences"]) if sizes.get("sequences") else None,
    )
    lines: list[dict[str, Any]] = []
    ways: list[dict[str, Any]] = []
    for name, model in models.items():
        calibration = calibrations[name]
        estimate = Estimate(counted, Recipe(**model["recipe"]), calibration, model=name)
        pretraining = Pretraining(**model["pretraining"]) if model["pretraining"] else None
        machine = Machine(
            gpus=model["gpus"],
            threads=model["threads"],
            gpu_hour=prices["gpu_hour"],
            core_hour=prices["core_hour"],
        )
        jobs = estimate.jobs(pretraining)
        lines += plan_lines(name, jobs, calibration=calibration, machine=machine)
        ways += new_task_lines(name, estimate, machine)
    lines.append(total_line(lines))
    text = _plan_text(
        calibrations, lines=lines, ways=ways, sizes=counted, currency=prices["currency"]
    )
    return CostPlan(lines, ways, text)


def _plan_text(
    calibrations: Mapping[str, Mapping[str, Any]],
    *,
    lines: Sequence[Mapping[str, Any]],
    ways: Sequence[Mapping[str, Any]],
    sizes: Sizes,
    currency: str,
) -> str:
    def money(value: float) -> str:
        return f"{value:,.2f} {currency}"

    count = "{:,}".format
    hours = {
        "seconds": "{:,.1f}".format,
        "gpu_hours": "{:,.3f}".format,
        "core_hours": "{:,.3f}".format,
    }
    columns = {"model": str, "rule": str, "jobs": count}
    columns |= {"training_tokens": count, "scoring_tokens": count}
    if any(line["answers"] for line in lines):
        columns["answers"] = count
    columns |= hours
    columns |= {"disk_mb": "{:,.1f}".format, "money": money}
    way_columns = {"model": str, "way": str} | hours
    way_columns |= {"share_of_exhaustive": "{:.1%}".format, "money": money}
    paragraphs = ["Measured on a few steps:"]
    for name, calibration in calibrations.items():
        paragraphs.append(_calibration_text(name, calibration))
    paragraphs += [
        "",
        "Estimated (seconds of the jobs, one after the other, without start-up and tables):",
        as_text(lines, columns),
        "",
        f"Forgetting of {sizes.examples:,} examples by a new task, from {sizes.probes} probes:",
        as_text(ways, way_columns),
        "",
    ]
    if sizes.replay is not None:
        paragraphs += [decision_sentence(sizes.replay, sizes.tasks), ""]
    return "\n".join(paragraphs)


def _calibration_text(name: str, calibration: Mapping[str, Any]) -> str:
    return (
        f"{name} on {calibration['device']}: {calibration['parameters']:,} parameters, trains "
        f"{calibration['training_tokens_per_second']:,.0f} and scores "
        f"{calibration['scoring_tokens_per_second']:,.0f} tokens per second, loads in "
        f"{calibration['load_seconds']:.1f} s, peak memory {calibration['peak_memory_mb']:,.0f} MB"
    )


def total_line(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds up the lines of plan.csv; money is None if it is None in any line."""
    total: dict[str, Any] = {"model": "all", "rule": "all"}
    for key in lines[0]:
        if key in total:
            continue
        values = [line[key] for line in lines]
        total[key] = None if None in values else sum(values)
    return total
