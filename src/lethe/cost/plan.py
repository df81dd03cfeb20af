"""What an experiment will cost, before anything of it is run (lethe.cost.ledger: what it did cost).

Costs are products of counts and of rates that a few steps gave (`lethe.cost.calibration`): jobs of
each rule, tokens trained on and scored, seconds, GPU- and core-hours, disk, money.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lethe.config.analysis_settings import NoiseSettings
from lethe.config.model_settings import Pretraining, Recipe
from lethe.config.replay_settings import Replay
from lethe.engine.training import planned_steps
from lethe.replay.strategies import draws
from lethe.tables import as_text

Calibration = Mapping[str, Any]


@dataclass(frozen=True)
class Sizes:
    """What decides how many jobs there are, and how long.

    `tasks` is task -> (group, split); N upstream `examples`, of which `heldout` are never
    replayed; `directions` says that fine-tunes are repeated to see where the weights go; `probes`
    is what a prediction rests on.
    """

    tasks: Mapping[str, tuple[str, str]]
    examples: int
    heldout: int
    noise: NoiseSettings | None = None
    replay: Replay | None = None
    directions: bool = False
    probes: int = 30


@dataclass(frozen=True)
class Machine:
    """What one job of a model takes, and what an hour of it costs; None: no price is known."""

    gpus: int
    threads: int
    gpu_hour: float | None = None
    core_hour: float | None = None

    def cost(self, seconds: float, on_gpu: bool) -> dict[str, float | None]:
        """GPU-hours, core-hours and money of so many seconds of jobs."""
        hours = seconds / 3600
        gpu = hours * self.gpus if on_gpu else 0.0
        core = hours * self.threads
        price = self.gpu_hour if on_gpu else self.core_hour
        money = None if price is None else price * (gpu if on_gpu else core)
        return {"gpu_hours": gpu, "core_hours": core, "money": money}


@dataclass(frozen=True)
class Work:
    """What one job does: tokens trained on, tokens scored, answers given, bytes left on disk."""

    trained: float = 0.0
    scored: float = 0.0
    answers: float = 0.0
    disk: float = 0.0
    loads: int = 1

    def seconds(self, calibration: Calibration) -> float:
        """How long it takes, imports of Python packages left out."""
        return (
            self.loads * calibration["loads"] * calibration["load_seconds"]
            + self.trained / calibration["training_tokens_per_second"]
            + self.scored / calibration["scoring_tokens_per_second"]
            + self.answers * (calibration["answer_seconds"] or 0.0)
        )


class Estimate:
    """The work of every job of one model."""

    def __init__(self, sizes: Sizes, recipe: Recipe, calibration: Calibration):
        self.sizes, self.recipe, self.calibration = sizes, recipe, calibration
        self.asks = calibration["answer_seconds"] is not None

    def jobs(self, pretraining: Pretraining | None = None) -> dict[str, list[Work]]:
        """Rule -> the work of each of its jobs."""
        sizes, found = self.sizes, {}
        if pretraining is not None:
            tokens = pretraining.steps * pretraining.batch * pretraining.context
            weights = self.calibration["weight_bytes"]
            found["pretrain_model"] = [Work(trained=tokens, disk=weights, loads=0)]
        # Right answers are asked for twice, so that batches are those of the rows.
        found["score_base"] = [self._scoring(sizes.examples, rounds=2)]
        found["measure_row"] = [self.row(task) for task in sizes.tasks]
        if sizes.directions:
            found["measure_direction"] = [self._training(task, loads=2) for task in sizes.tasks]
        if (noise := sizes.noise) is not None:
            again = [self.row(task, 1 + noise.measurements) for task in noise.tasks]
            found["repeat_row"] = again * noise.trainings
        if (replay := sizes.replay) is not None:
            tests = [task for task, (_, split) in sizes.tasks.items() if split != "train"]
            found["replay_run"] = [
                self._replay(strategy, seed, task)
                for strategy in replay.strategies
                for seed in replay.seeds
                for task in tests
            ]
        return found

    def row(self, task: str, rounds: int = 1) -> Work:
        """One fine-tune and `rounds` measurements of all upstream examples."""
        return _sum(self._training(task), self._scoring(self.sizes.examples, rounds, files=rounds))

    def ways(self) -> dict[str, Work]:
        """What a new task's forgetting costs, by the way to get it, for a task as the others are.

        exhaustive: fine-tune, score all. offline: fine-tune, score the probes, predict the rest.
        online: score the probes while the fine-tune that is wanted anyway goes on (protocol:
        paper, section 1.7).
        """
        train = _mean([self._training(task) for task in self.sizes.tasks])
        probes = self._scoring(self.sizes.probes, loads=0)
        whole = self._scoring(self.sizes.examples, loads=0)
        return {
            "exhaustive": _sum(train, whole),
            "offline": _sum(train, probes),
            "online": probes,
        }

    def _training(self, task: str, loads: int = 1) -> Work:
        told = self.calibration["tasks"][task]
        group = self.sizes.tasks[task][0]
        steps = planned_steps(self.recipe, told["examples"], group)
        tokens = steps * self.recipe.batch * told["tokens"]
        own = 2 * told["eval_tokens"]
        disk = self.calibration["weight_bytes"] if self.recipe.keep_weights else 0
        answers = 2 * told["eval_examples"] if self.asks else 0
        return Work(tokens, own, answers, disk, loads)

    def _scoring(self, examples: int, rounds: int = 1, files: int = 1, loads: int = 1) -> Work:
        tokens = examples * self.calibration["upstream_tokens"]
        disk = files * examples * self.calibration["row_bytes"]
        if not self.asks:
            # Losses of the base model are measured once.
            return Work(0.0, tokens * files, 0.0, disk, loads)
        return Work(0.0, tokens * files, examples * rounds, disk, loads)

    def _replay(self, strategy: str, seed: int, task: str) -> Work:
        replay = self.sizes.replay
        scoring = self._scoring(self.sizes.heldout, loads=0)
        if (strategy, seed) == ("none", 0):
            return Work(disk=scoring.disk, loads=0)  # the row itself, cut to the held-out examples
        work = _sum(self._training(task), scoring)
        if strategy == "none" or replay is None or replay.accounting == "swap":
            return work
        steps = planned_steps(
            self.recipe, self.calibration["tasks"][task]["examples"], self.sizes.tasks[task][0]
        )
        replayed = draws(steps * self.recipe.batch, replay.ratio)
        return _sum(work, Work(trained=replayed * self.calibration["upstream_tokens"], loads=0))


def _sum(*works: Work) -> Work:
    # A job loads its model once, whatever it does with it.
    loads = max(work.loads for work in works)
    added = {key: sum(getattr(w, key) for w in works) for key in _ADDED}
    return Work(**added, loads=loads)


def _mean(works: Sequence[Work]) -> Work:
    total = _sum(*works)
    return Work(**{key: getattr(total, key) / len(works) for key in _ADDED}, loads=total.loads)


_ADDED = ("trained", "scored", "answers", "disk")


def lines(
    model: str, jobs: Mapping[str, Sequence[Work]], calibration: Calibration, machine: Machine
) -> list[dict[str, Any]]:
    """Lines of plan.csv, one a rule: model, rule, jobs, tokens, seconds, hours, disk, money."""
    return [
        {
            "model": model,
            "rule": rule,
            "jobs": len(works),
            "training_tokens": round(sum(work.trained for work in works)),
            "scoring_tokens": round(sum(work.scored for work in works)),
            "answers": round(sum(work.answers for work in works)),
            "seconds": (seconds := sum(work.seconds(calibration) for work in works)),
            **machine.cost(seconds, calibration["device"] != "cpu"),
            "disk_mb": sum(work.disk for work in works) / 1e6,
        }
        for rule, works in jobs.items()
    ]


def new_task(model: str, estimate: Estimate, machine: Machine) -> list[dict[str, Any]]:
    """Lines of new_task.csv: what a new task's forgetting costs, one way of getting it a line."""
    calibration = estimate.calibration
    ways = {way: work.seconds(calibration) for way, work in estimate.ways().items()}
    return [
        {
            "model": model,
            "way": way,
            "seconds": seconds,
            **machine.cost(seconds, calibration["device"] != "cpu"),
            "share_of_exhaustive": seconds / ways["exhaustive"],
        }
        for way, seconds in ways.items()
    ]


@dataclass(frozen=True)
class Plan:
    """Lines of plan.csv and of new_task.csv, and both as a text to read."""

    lines: list[dict[str, Any]]
    ways: list[dict[str, Any]]
    text: str


def plan(
    calibrations: Mapping[str, Calibration],
    models: Mapping[str, Mapping[str, Any]],
    splits: Mapping[str, int],
    sizes: Mapping[str, Any],
    prices: Mapping[str, Any],
) -> Plan:
    """The whole plan.

    Parameters
    ----------
    calibrations
        Model -> what `lethe.cost.calibration.calibrate` found.
    models
        Model -> recipe, gpus, threads, pretraining (None: not pretrained here).
    splits
        How many upstream examples are `heldout` and `replayable`.
    sizes
        `tasks`, `noise`, `replay`, `directions`, as `Sizes` has them, of JSON values.
    prices
        `gpu_hour`, `core_hour` (None: not known), `currency`.
    """
    noise, replay = sizes["noise"], sizes["replay"]
    counted = Sizes(
        sizes["tasks"],
        sum(splits.values()),
        splits["heldout"],
        NoiseSettings(**noise) if noise else None,
        Replay(**replay) if replay else None,
        sizes["directions"],
        replay["probes"] if replay else Sizes.probes,
    )
    found: list[dict[str, Any]] = []
    ways: list[dict[str, Any]] = []
    for name, told in models.items():
        estimate = Estimate(counted, Recipe(**told["recipe"]), calibrations[name])
        pretraining = Pretraining(**told["pretraining"]) if told["pretraining"] else None
        hours = (prices["gpu_hour"], prices["core_hour"])
        machine = Machine(told["gpus"], told["threads"], *hours)
        found += lines(name, estimate.jobs(pretraining), calibrations[name], machine)
        ways += new_task(name, estimate, machine)
    found.append(total(found))
    return Plan(found, ways, _plan_text(calibrations, found, ways, counted, prices["currency"]))


def _plan_text(
    calibrations: Mapping[str, Calibration],
    found: Sequence[Mapping[str, Any]],
    ways: Sequence[Mapping[str, Any]],
    sizes: Sizes,
    currency: str,
) -> str:
    hours = {
        "seconds": "{:,.1f}".format,
        "gpu_hours": "{:,.3f}".format,
        "core_hours": "{:,.3f}".format,
    }
    money = {"money": lambda value: f"{value:,.2f} {currency}"}
    whole = {"model": str, "rule": str, "jobs": "{:,}".format}
    tokens = {key: "{:,}".format for key in ("training_tokens", "scoring_tokens")}
    if any(line["answers"] for line in found):
        tokens["answers"] = "{:,}".format
    rest = {"disk_mb": "{:,.1f}".format, **money}
    tried = [
        f"{name} on {seen['device']}: {seen['parameters']:,} parameters, trains "
        f"{seen['training_tokens_per_second']:,.0f} and scores "
        f"{seen['scoring_tokens_per_second']:,.0f} tokens a second, loads in "
        f"{seen['load_seconds']:.1f} s, peak memory {seen['peak_memory_mb']:,.0f} MB"
        for name, seen in calibrations.items()
    ]
    share = {"share_of_exhaustive": "{:.1%}".format, **money}
    return "\n".join(
        [
            "Tried:",
            *tried,
            "",
            "Estimated (jobs' own seconds, one after the other; start-up and tables left out):",
            as_text(found, whole | tokens | hours | rest),
            "",
            f"A new task's forgetting of {sizes.examples:,} examples, from {sizes.probes} probes:",
            as_text(ways, {"model": str, "way": str} | hours | share),
            "",
        ]
    )


def total(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A line that adds up the others; money is None if that of one is."""
    added: dict[str, Any] = {"model": "all", "rule": "all"}
    for key in records[0]:
        if key in added:
            continue
        values = [record[key] for record in records]
        added[key] = None if None in values else sum(values)
    return added
