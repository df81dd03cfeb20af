"""One replay run: choose, fine-tune with replay, measure the examples that were never replayed."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from lethe.analysis.rises import RunKey, describe_rises, noise_floor_between_seeds
from lethe.config.replay_settings import ReplayRun
from lethe.data.examples import UpstreamExample, without_copies_of_heldout
from lethe.errors import LetheError
from lethe.matrix import rows
from lethe.replay.draws import RANDOM_SHARE, count_replayed, draw_softmax
from lethe.replay.replay_inputs import ReplayInputs
from lethe.replay.strategies import Choice, Pool, choose_replayed

if TYPE_CHECKING:
    from lethe.engine.objectives import ReplayTerm
    from lethe.measure.forgetting import Job
    from lethe.replay.phases import PhasedChoice

_log = logging.getLogger("lethe.replay")

# Columns of replay.csv that every run has, and those that not every run has.
_COLUMNS = (
    "strategy",
    "task",
    "seed",
    "heldout_forgetting",
    "eval_loss_before",
    "eval_loss_after",
    "replayed",
    "replayed_distinct",
    "effective_sample_size",
    "steps",
    "missing",
    "training_seconds",
)
_ADDED_COLUMNS = (
    "replayed_token_share",
    "pool",
    "temperature_nats",
    "random_in_effect",
    "heldout_kl",
    "probe_passes",
    "heldout_routed",
    "eval_routed",
    "memory_bytes",
    "routing_seconds",
    # The fine-tune that several shares are scored from, and a row that is a copy of one of Z.
    "variant",
    "copied",
)


def fine_tune_with_replay(
    job: "Job",
    upstream: Sequence[UpstreamExample],
    run: ReplayRun,
    *,
    task: str,
    seed: int,
    inputs: ReplayInputs | None = None,
) -> rows.Row:
    """Fine-tunes with replayed examples and returns the row of the held-out ones.

    The seed draws the order of the task's own examples and, together with the task's name, the
    replayed ones. So all runs of a seed share the noise of the fine-tune and can be compared
    pairwise, and different tasks do not share the luck of one draw.

    Parameters
    ----------
    job
        The fine-tune. Its recipe already has the changes of the run.
    run
        The run's settings; its name is in the column `strategy`.
    inputs
        What the strategy chooses by.

    Raises
    ------
    LetheError
        If a held-out example would be replayed, the strategy lacks an input, or the run has
        several shares of the weights' change (`fine_tune_at_shares`).
    """
    if isinstance(run.interpolate, list):
        raise LetheError(
            f"replay {run.name}: `interpolate` has {len(run.interpolate)} shares, which are one "
            "row each; call lethe.replay.runs.fine_tune_at_shares"
        )
    (row,) = fine_tune_at_shares(
        job,
        upstream,
        run,
        task=task,
        seed=seed,
        inputs=inputs,
    )
    return row


def fine_tune_at_shares(
    job: "Job",
    upstream: Sequence[UpstreamExample],
    run: ReplayRun,
    *,
    task: str,
    seed: int,
    inputs: ReplayInputs | None = None,
) -> list[rows.Row]:
    """The rows of a run: one, or one per share of the weights' change if it has a list of them.

    All shares are scored from one fine-tune, and each has the losses of a run with this share
    alone. Parameters and errors are those of `fine_tune_with_replay`.

    Returns
    -------
    Rows of the held-out examples, one per run of `ReplayRun.results` in their order.
    """
    title = f"{task}, replay {run.name}"
    recipe = job.recipe.model_copy(update={"seed": job.recipe.seed + seed})
    heldout = [example for example in upstream if example.split == "heldout"]
    chosen = choose_replay(
        replace(job, recipe=recipe),
        upstream,
        run,
        task=task,
        seed=seed,
        title=title,
        inputs=inputs,
    )
    term = chosen.term
    replayed = chosen.replayed
    choice = chosen.choice
    costs = dict(chosen.costs)
    shares = run.interpolate if isinstance(run.interpolate, list) else []
    share = None if shares else run.interpolate
    seeded = replace(job, recipe=recipe, share_of_change=share)
    model, tokenizer, row = seeded.run(heldout, term, title=title)
    if run.chooses_during_training:
        row, replayed, choice = read_phases(row, term.examples)
        _report_random_draw(run, choice, title)
        refuse_heldout(replayed, heldout, run)
        costs["probe_passes"] = sum(len(record["probes"]) for record in row.about["replay_phases"])
    measured: Iterable[rows.Row] = [row]
    if shares:
        from lethe.measure.shares import rows_at_shares

        measured = rows_at_shares(
            seeded, model, tokenizer, row, upstream=heldout, shares=shares, title=title
        )
    labelled = []
    # While the row of a share is out, the model has the weights of this share.
    for result, of_share in zip(run.results(), measured, strict=True):
        about = of_share.about | costs
        if shares:
            about["variant"] = run.name
        if run.heldout_kl:
            about["heldout_kl"] = seeded.heldout_divergence(model, tokenizer, heldout, title)
        labelled.append(
            _labelled(
                replace(of_share, about=about),
                replayed,
                choice,
                run=result.name,
                task=task,
                seed=seed,
            )
        )
    return labelled


@dataclass(frozen=True)
class ChosenReplay:
    """The replay of one fine-tune before it begins.

    Attributes
    ----------
    term
        The replayed examples, or those that may be, and how they enter the loss; None without
        replay.
    replayed, choice
        The replayed examples in their order and how they were drawn; empty and None if they are
        chosen during the training.
    costs
        Passes of probes that the choice took, for the row's record.
    """

    term: "ReplayTerm | None" = None
    replayed: Sequence[UpstreamExample] = ()
    choice: Choice | None = None
    costs: Mapping[str, int] = field(default_factory=dict)


def choose_replay(
    job: "Job",
    upstream: Sequence[UpstreamExample],
    run: ReplayRun,
    *,
    task: str,
    seed: int,
    title: str,
    share: float = 1.0,
    inputs: ReplayInputs | None = None,
) -> ChosenReplay:
    """Chooses the upstream examples that a fine-tune replays, by the run's strategy.

    Parameters
    ----------
    job
        The fine-tune. Its recipe already has the changes of the run and the seed.
    share
        Share of the run's replayed examples that are chosen here. A sequence of tasks replays
        examples of earlier tasks as well.

    The other parameters and the errors are those of `fine_tune_with_replay`.
    """
    if not run.replays:
        return ChosenReplay()
    inputs = inputs or ReplayInputs()
    # Imported here because torch takes seconds, and `without_replay` does without it.
    from lethe.replay.phases import PhasedChoice

    count = _number_of_replayed(job, run, share, title)
    if count == 0 and share < 1:
        return ChosenReplay()
    usable = _usable(upstream, title)
    costs = {}
    draw_seed = [seed, crc32(task.encode())]
    forgetting = inputs.forgetting
    if run.strategy == "mir":
        forgetting = rises_after_virtual_step(
            job,
            usable,
            candidates=run.mir_candidates * count,
            seed=draw_seed,
            title=title,
        )
        costs["probe_passes"] = int(np.isfinite(list(forgetting.values())).sum())
    losses = zip(job.base.example_ids, job.base.loss_before.tolist(), strict=True)
    pool = Pool.of(
        usable,
        forgetting=forgetting,
        base_losses=dict(losses),
        training_rows=inputs.training_rows,
        gradient_products=inputs.gradient_products,
        gradient_profiles=inputs.gradient_profiles,
    )
    if run.chooses_during_training:
        chooser = PhasedChoice.of(
            pool, run, count=count, seed=draw_seed, options=inputs.completion_options
        )
        return ChosenReplay(term=replay_term(run, chooser.pool.examples, chooser), costs=costs)
    replayed, choice = choose_replayed(pool, run, count=count, seed=draw_seed)
    _report_random_draw(run, choice, title)
    heldout = [example for example in upstream if example.split == "heldout"]
    refuse_heldout(replayed, heldout, run)
    return ChosenReplay(
        term=replay_term(run, replayed, weights=choice.weights),
        replayed=replayed,
        choice=choice,
        costs=costs,
    )


def _number_of_replayed(job: "Job", run: ReplayRun, share: float, title: str) -> int:
    """How many examples are replayed, by the ratio of the run and the length of the training."""
    from lethe.engine.training import planned_steps

    new_examples = planned_steps(job.recipe, len(job.train), job.group) * job.recipe.batch
    if new_examples * run.ratio < 1:
        _log.warning(
            "%s: replay.ratio %g of %d new examples is less than one example; one is replayed",
            title,
            run.ratio,
            new_examples,
        )
    count = count_replayed(new_examples, run.ratio)
    return count if share == 1 else round(share * count)


def _usable(upstream: Sequence[UpstreamExample], title: str) -> list[UpstreamExample]:
    """The examples without those whose text is held out, with a warning that counts the latter."""
    usable = without_copies_of_heldout(upstream)
    if len(usable) < len(upstream):
        _log.warning(
            "%s: %d of %d upstream examples have the text of a held-out one and are not replayed",
            title,
            len(upstream) - len(usable),
            len(upstream),
        )
    return usable


def replay_term(
    run: ReplayRun,
    examples: Sequence[UpstreamExample],
    chooser: "PhasedChoice | None" = None,
    weights: np.ndarray | None = None,
) -> "ReplayTerm":
    """The replay term of a run, with its examples or those that the chooser may choose.

    `weights` (n,) say as how many examples each counts; None: all as one.
    """
    from lethe.engine.objectives import ReplayTerm

    return ReplayTerm(
        examples=examples,
        weights=None if weights is None else weights.tolist(),
        objective=run.objective,
        weight=run.weight,
        dose=run.dose,
        accounting=run.accounting,
        teacher=run.teacher,
        teacher_dtype=run.teacher_dtype,
        top_k=run.top_k,
        chooser=chooser,
    )


def refuse_heldout(
    replayed: Sequence[UpstreamExample], heldout: Sequence[UpstreamExample], run: ReplayRun
) -> None:
    """Refuses held-out examples among the replayed, which would make the comparison worthless.

    A text may stand under another id, so contents are compared. The check is cheap.

    Raises
    ------
    LetheError
        Naming the run and the ids.
    """
    usable = without_copies_of_heldout([*heldout, *replayed])
    allowed = {example.example_id for example in usable if example.split != "heldout"}
    leaked = {example.example_id for example in replayed} - allowed
    if leaked:
        raise LetheError(
            f"replay {run.name}: held-out examples would be replayed: {sorted(leaked)}; replay "
            "only examples whose text is not held out"
        )


def read_phases(
    row: rows.Row, candidates: Sequence[UpstreamExample]
) -> tuple[rows.Row, list[UpstreamExample], Choice]:
    """Reads the choices of a training's phases.

    Returns
    -------
    The row with ids in the records of its phases, in place of the candidates' numbers; the
    replayed examples in their order; and the choice of the last phase.
    """
    replayed = []
    records = []
    for record in row.about["replay_phases"]:
        examples = [candidates[number] for number in record["examples"]]
        replayed += examples
        records.append({**record, "examples": [example.example_id for example in examples]})
        choice = Choice(indices=np.array(record["examples"], dtype=int), **record["draw"])
    return replace(row, about=row.about | {"replay_phases": records}), replayed, choice


def rises_after_virtual_step(
    job: "Job",
    upstream: Sequence[UpstreamExample],
    *,
    candidates: int,
    seed: Sequence[int],
    title: str,
) -> dict[str, float]:
    """Rise in loss of random candidates after one training step on the new task, for `mir`.

    The step is the first of the fine-tune, at its highest learning rate. The model that took it is
    thrown away. A job with a checkpoint keeps the rises in it, so that a run that resumes takes no
    second virtual step.

    Parameters
    ----------
    candidates
        Number of random candidates; the whole pool if it is smaller.

    Returns
    -------
    Rises by example_id, in nats; NaN for replayable examples that are no candidates.
    """
    pool = [example for example in upstream if example.split == "replayable"]
    size = min(len(pool), candidates)
    measured = [pool[i] for i in draw_softmax(np.zeros(len(pool)), size, [*seed, 1])]
    # A whole step, also where the fine-tuned weights are averaged over the steps or with the base
    # model's.
    step = {"steps": 1, "group_steps": {}, "warmup_steps": 0, "decay": "constant", "ema": None}
    folder = None if job.unfinished is None else job.unfinished / "virtual_step"
    recipe = job.recipe.model_copy(update=step)
    virtual = replace(job, recipe=recipe, unfinished=folder, share_of_change=None)
    # Imported here because torch takes seconds.
    import torch

    from lethe.engine.checkpoints import Checkpoint

    checkpoint = Checkpoint(job.unfinished, virtual.made_from(measured))
    if (saved := checkpoint.load("rises")) is not None:
        forgetting = saved[0]["forgetting"].numpy()
    else:
        *_, row = virtual.run(measured, title=f"{title}, virtual step")
        # With scoring.exact_match, row.forgetting counts answers, and not the rise in loss.
        forgetting = row.loss_after - row.loss_before
        # A few kilobytes, which are written at once: the fine-tune has a checkpoint of its own.
        if folder is not None:
            checkpoint.save("rises", {"forgetting": torch.from_numpy(np.array(forgetting))})
            virtual.finish()
    rises = {example.example_id: float("nan") for example in pool}
    names = [example.example_id for example in measured]
    return rises | dict(zip(names, forgetting.tolist(), strict=True))


def _report_random_draw(run: ReplayRun, choice: Choice, title: str) -> None:
    """Warns of a strategy whose weights are so even that the draw is random in effect."""
    if run.strategy in ("random", "balanced") or not choice.is_random:
        return
    remedy = "lower replay.temperature"
    if run.strategy == "importance":
        remedy = "all of them are predicted to be forgotten nearly alike"
    elif choice.temperature is None:
        remedy = "lower replay.ratio or give more upstream examples"
    _log.warning(
        "%s: this is random replay in effect, because the effective sample size %.0f is above "
        "%.0f %% of the %d replayable examples; %s",
        title,
        choice.effective_sample_size,
        100 * RANDOM_SHARE,
        choice.pool,
        remedy,
    )


def without_replay(
    row: rows.Row, upstream: Sequence[UpstreamExample], *, task: str, name: str = "none"
) -> rows.Row:
    """The run without replay and of seed 0: the task's own row, cut to the held-out examples."""
    heldout = [example.example_id for example in upstream if example.split == "heldout"]
    selected = row.select(heldout)
    labelled = _labelled(selected, [], None, run=name, task=task, seed=0)
    missing = int(np.isnan(selected.loss_after).sum())
    return replace(labelled, about=labelled.about | {"copied": True, "missing": missing})


def _labelled(
    row: rows.Row,
    replayed: Sequence[UpstreamExample],
    choice: Choice | None,
    *,
    run: str,
    task: str,
    seed: int,
) -> rows.Row:
    about = {
        "strategy": run,
        "task": task,
        "seed": seed,
        "replayed": len(replayed),
        "replayed_distinct": len({example.example_id for example in replayed}),
        "effective_sample_size": choice.effective_sample_size if choice else 0.0,
        "heldout_forgetting": float(np.nanmean(row.forgetting)),
        "replayed_token_share": row.about.get("replayed_token_share", 0.0),
    }
    if choice is not None:
        about["pool"] = choice.pool
        about["temperature_nats"] = choice.temperature
        about["random_in_effect"] = choice.is_random
    return replace(row, about=row.about | about)


def replay_line(row: rows.Row) -> dict[str, Any]:
    """A record of replay.csv: one run, measured on held-out upstream examples (nats)."""
    record = {key: row.about[key] for key in _COLUMNS}
    for key in _ADDED_COLUMNS:
        if key in row.about:
            record[key] = row.about[key]
    return record


@dataclass(frozen=True)
class GatheredRuns:
    """Records of replay.csv, and the forgetting (n,) of the held-out examples by run."""

    records: list[dict[str, Any]]
    forgetting: dict[RunKey, np.ndarray]
    noise_floor: float


def gather_runs(
    runs: Sequence[rows.Row],
    upstream: Sequence[UpstreamExample],
    noise_floor: float | None = None,
) -> GatheredRuns:
    """Describes the runs of one model.

    Parameters
    ----------
    runs
        Rows of the held-out examples, one per run.
    noise_floor
        Threshold in nats; only rises above it are counted. None: twice the standard deviation
        between seeds.

    Raises
    ------
    LetheError
        If two runs measured different examples.
    """
    domains = {example.example_id: example.domain for example in upstream}
    forgetting: dict[RunKey, np.ndarray] = {}
    for row in runs:
        if row.example_ids != runs[0].example_ids:
            raise LetheError(
                f"replay: run {row.about['strategy']!r} of task {row.about['task']!r} measured "
                "other held-out examples than the first run; move its file away and run again"
            )
        key = RunKey(row.about["strategy"], row.about["task"], row.about["seed"])
        forgetting[key] = row.forgetting
    floor = noise_floor_between_seeds(forgetting) if noise_floor is None else noise_floor
    records = []
    for row in runs:
        of_examples = [domains[example_id] for example_id in row.example_ids]
        described = describe_rises(row.forgetting, of_examples, floor)
        records.append(replay_line(row) | described | {"noise_floor": floor})
    return GatheredRuns(records, forgetting, floor)
