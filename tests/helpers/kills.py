"""Runs one job again and again and kills it at random moments, until it ends by itself."""

import faulthandler
import json
import os
import random
import signal
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from helpers import tiny
from lethe.config.model_settings import Recipe, Scoring
from lethe.engine.objectives import ReplayTerm
from lethe.matrix import rows
from lethe.measure.forgetting import Job


def measure_and_kill(folder: Path, told: dict[str, Any]) -> None:
    """Forks the job until it ends by itself, and prints the statuses that it left with, as JSON.

    Every other fork is killed at a random moment of the time that the first one took undisturbed.
    A job that ended before enough forks were hit is begun anew. One that hangs says where, and
    fails.

    Parameters
    ----------
    told
        Card, recipe, scoring and replay term of the job; `signal`, the number to kill with or None;
        `kills`, the most forks that are killed before enough were hit; `seed` of the moments.
    """
    torch.set_num_threads(1)
    rng, seconds = random.Random(told["seed"]), None
    statuses: list[int] = []

    def enough() -> bool:
        hit = [status for status in statuses if status != 0]
        return not told["signal"] or len(hit) > 1 and (told["signal"] == 9 or 143 in hit)

    # Before a job listens, Ctrl-C may interrupt a library that holds a lock, for ever.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while not statuses or statuses[-1] != 0 or not enough():
        assert len(statuses) < 60, statuses
        began, child = time.monotonic(), os.fork()
        if child == 0:
            _measure(folder, told)
        if seconds is not None and (len(statuses) < told["kills"] or not enough()):
            time.sleep(rng.uniform(0, seconds))
            os.kill(child, told["signal"])
        statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert statuses[-1] != 1, statuses  # An error, or a hang; its traceback is on stderr.
        seconds = seconds or time.monotonic() - began
    print(json.dumps(statuses), flush=True)


def _measure(folder: Path, told: dict[str, Any]) -> None:
    """Makes the row, then ends this process."""
    faulthandler.dump_traceback_later(120, exit=True)
    code = 1
    try:
        term = ReplayTerm(tiny.upstream(48)[:12], **told["replay"]) if told["replay"] else None
        job = Job(
            told["card"],
            rows.read_row(folder / "base.parquet"),
            *(tiny.pairs(20, seed=1), tiny.pairs(6, seed=2)),
            Recipe(**told["recipe"]),
            Scoring(**told["scoring"]),
            unfinished=folder / "unfinished",
        )
        *_, row = job.run(tiny.upstream(48), term)
        rows.write_row(folder / "row.parquet", row)
        job.finish()
        code = 0
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
