"""A job script whose functions are run in several processes."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from helpers import tiny
from lethe.config.model_settings import Recipe, Scoring
from lethe.data.examples import Example, UpstreamExample
from lethe.engine import distributed
from lethe.engine.objectives import ReplayTerm
from lethe.engine.phased_steps import PhaseDraw
from lethe.errors import LetheError
from lethe.matrix import rows
from lethe.measure import forgetting


def upstream(answers: list[str] | None = None) -> list[UpstreamExample]:
    """Ragged examples: plain text, or pairs that want these answers."""
    texts = [" ".join(text.split()[: 3 + i % 6]) for i, text in enumerate(tiny.sentences(11))]
    pairs = zip(texts, answers or texts, strict=True)
    return [
        UpstreamExample(
            f"a-{i}",
            "a",
            "replayable",
            Example(text=text) if answers is None else Example(text, answer),
        )
        for i, (text, answer) in enumerate(pairs)
    ]


def job(
    folder: Path, card: dict, name: str, recipe: dict, scoring: dict, gpus: int
) -> forgetting.Job:
    """A job whose base row lies in the folder."""
    base = rows.read_row(folder / f"{name}-base.parquet")
    train = [e for e in tiny.pairs(14, seed=1)] + [Example("a longer prompt " * 3, "yes, it is")]
    return forgetting.Job(
        card=card,
        base=base,
        train=train,
        evaluation=tiny.pairs(5, seed=2),
        recipe=Recipe(**recipe),
        scoring=Scoring(**scoring),
        gpus=gpus,
        anchors=upstream()[:3],
        unfinished=folder / f"{name}-unfinished",
    )


@dataclass(frozen=True)
class WorstFirst:
    """Replays the first examples, then those that the half-trained model has forgotten most."""

    count: int
    shares: tuple[float, ...]

    def settings(self) -> list:
        """What the choice depends on."""
        return [self.count, self.shares]

    def choose_first(self) -> PhaseDraw:
        """The first examples."""
        return PhaseDraw(list(range(self.count)), {"values": []})

    def choose_rest(self, phase, count, replayed, measure) -> PhaseDraw:
        """Those forgotten most, by values that all processes share."""
        others = [number for number in range(len(upstream())) if number not in replayed]
        values = measure(others).tolist()
        assert all(other == values for other in distributed.all_gather(values))
        worst = sorted(range(len(others)), key=lambda position: -values[position])
        return PhaseDraw([others[position] for position in worst[:count]], {"values": values})


def measure(
    folder: Path,
    cards: dict,
    recipe: dict,
    scoring: dict,
    answers: dict,
    kill_at: int,
    gpus: int,
    replay: dict | None = None,
) -> None:
    """Writes the row of each card; at step `kill_at` process 1 alone hears that it must stop."""
    term = None
    if replay:
        settings = dict(replay)
        shares = settings.pop("shares", None)
        chooser = None if shares is None else WorstFirst(count=5, shares=tuple(shares))
        pool = upstream()[:5] if chooser is None else upstream()
        term = ReplayTerm(pool, **settings, chooser=chooser)
    for name, card in cards.items():
        made = job(folder, card, name, recipe, scoring, gpus)
        steps = []

        def due(checkpoint, inside=forgetting.Checkpoint.due, steps=steps):
            steps.append(1)
            if len(steps) == kill_at and distributed.rank() == distributed.size() - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return inside(checkpoint)

        forgetting.Checkpoint.due, inside = due, forgetting.Checkpoint.due
        try:
            *_, row = made.run(upstream(answers.get(name)), term)
        finally:
            forgetting.Checkpoint.due = inside
        if distributed.rank() == 0:
            rows.write_row(folder / f"{name}.parquet", row)
        made.finish()


def fail(how: str, gpus: int) -> None:
    """One process ends, the first only with `how` "first killed"; the other would wait for it."""
    if distributed.rank() == (how != "first killed"):
        if how == "error":
            raise LetheError("task x: the disk is on fire; call somebody")
        if how == "bug":
            raise ZeroDivisionError("one by nothing")
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.all_gather(None)


def count_interrupts(folder: Path, gpus: int) -> None:
    """Writes how often Ctrl-C was heard within a second of the first time."""
    heard = []
    signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    (folder / f"{distributed.rank()}.ready").touch()
    until = time.monotonic() + 60
    while not heard and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(1)
    (folder / f"{distributed.rank()}.heard").write_text(str(len(heard)))


def outlive(job: int, gpus: int) -> None:
    """Process 1 is done at once; then the job is asked to stop, and process 0 still runs."""
    other = distributed.all_gather(os.getpid())[1]
    if distributed.rank() == 0:
        until = time.monotonic() + 60
        while Path(f"/proc/{other}").exists() and time.monotonic() < until:
            time.sleep(0.1)
        os.kill(job, signal.SIGTERM)
        time.sleep(60)
