"""The streamed rank curve and completion against numpy's SVD, on the same file in the same run.

    python benchmarks/lowrank.py                        # N = 1,000 to 100,000
    python benchmarks/lowrank.py --examples 10000000    # 3.4 GB under --folder, deleted at the end

Every measurement is a process of its own, so that its peak memory is its own (Linux). Threads are
those of the environment for both sides: OMP_NUM_THREADS=1 where others use the machine too.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from lethe.analysis import streamed_rank
from lethe.completion.gaussian import Gaussian  # noqa: E402
from lethe.completion.streamed import StreamedCompletion, probe_scores  # noqa: E402
from lethe.files import write_json  # noqa: E402
from lethe.matrix import forgetting_matrix, moments, streams  # noqa: E402

RANK, NOISE, PROBES = 5, 0.3, 30


def tasks_of(count: int) -> list[str]:
    """Names of the tasks."""
    return [f"task-{i:03d}" for i in range(count)]


def made_up(tasks: int, examples: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """A Z of rank 5 plus example means and noise, chunk by chunk."""
    loadings = np.random.default_rng(0).normal(size=(tasks, RANK)).astype(np.float32)
    for start in range(0, examples, forgetting_matrix.ROW_GROUP):
        rng = np.random.default_rng([1, start])
        count = min(forgetting_matrix.ROW_GROUP, examples - start)
        factors = rng.standard_normal((RANK, count), dtype=np.float32)
        values = loadings @ factors + rng.standard_normal(count, dtype=np.float32)
        values += NOISE * rng.standard_normal((tasks, count), dtype=np.float32)
        yield [f"e{i}" for i in range(start, start + count)], values


def read_only(path: Path) -> dict:
    """Reads every chunk and does nothing with it."""
    return {"cells": sum(chunk.size for chunk in streams.Stream(path))}


def streamed_curve(path: Path) -> dict:
    """The rank curve as the workflow makes it."""
    return {"r2": streamed_rank.streamed_rank_curve(path).r2.tolist()}


def numpy_svd(path: Path) -> dict:
    """R2 by rank from numpy's SVD of the whole matrix."""
    z = forgetting_matrix.read_matrix(path).values.astype(np.float64)
    squares = np.square(np.linalg.svd(z, compute_uv=False))
    left = np.square(z).sum() - np.cumsum(squares)
    return {"r2": (1 - left / np.square(z - z.mean()).sum()).tolist()}


def streamed_completion(path: Path) -> dict:
    """One unseen task, the last, completed from 30 probes; RMSE over a sample of other cells."""
    names = streams.Stream(path).tasks
    test = streams.Stream(path, names[-1:])
    rng = np.random.default_rng(2)
    drawn = rng.choice(test.examples, PROBES + min(20_000, test.examples // 2), replace=False)
    index, scored = np.sort(drawn[:PROBES]), drawn[PROBES:]
    fitted = StreamedCompletion(Gaussian(), streams.Stream(path, names[:-1]))
    predicted = fitted.predict(index, test.take(index))[0]
    missed = predicted[scored] - test.take(scored)[0]
    return {"rmse": float(np.sqrt(np.square(missed).mean()))}


def streamed_probe_scores(path: Path) -> dict:
    """What each example would tell if probed, for all tasks."""
    scores = probe_scores(StreamedCompletion(Gaussian(), streams.Stream(path)), PROBES)
    return {"best": int(scores.argmax())}


def _child(function: Callable, path: Path, pipe: Any) -> None:
    # A child starts with its parent's peak; Linux resets it when asked.
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_kb()
    seconds: list[float] = []
    used: list[float] = []
    # Work of a moment is timed until the first call's start-up no longer counts.
    while sum(seconds) < 2 and len(seconds) < 7:
        began, busy = time.perf_counter(), time.process_time()
        found = function(path)
        seconds.append(time.perf_counter() - began)
        used.append(time.process_time() - busy)
    # On a machine that others use as well the second says more than the first.
    found["seconds"], found["cpu_seconds"] = min(seconds), min(used)
    found["peak_mb"] = (_peak_kb() - before) / 1024
    pipe.send(found)


def _peak_kb() -> int:
    status = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def measured(function: Callable, path: Path) -> dict:
    """The function's answer with its seconds and the memory it took beyond its imports."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(function, path, there))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return {"failed": f"{function.__name__} died; out of memory?"}
    finally:
        process.join()


def compare(folder: Path, tasks: int, examples: int, svd_examples: int) -> dict:
    """All measurements at one N."""
    path = folder / f"Z-{tasks}x{examples}.parquet"
    forgetting_matrix.write_matrix_chunks(path, tasks_of(tasks), made_up(tasks, examples))
    line = {"tasks": tasks, "examples": examples, "file_mb": path.stat().st_size / 2**20}
    functions = [read_only, streamed_curve, streamed_completion, streamed_probe_scores]
    if examples <= svd_examples:
        functions.append(numpy_svd)
    try:
        line |= {function.__name__: measured(function, path) for function in functions}
    finally:
        path.unlink()
    curve, svd = line["streamed_curve"], line.get("numpy_svd", {})
    if "r2" in svd:
        line["largest_r2_difference"] = float(np.abs(np.subtract(curve["r2"], svd["r2"])).max())
        line["seconds_ratio"] = svd["seconds"] / curve["seconds"]
        line["memory_ratio"] = svd["peak_mb"] / max(curve["peak_mb"], 1)
    return line


def table(lines: list[dict]) -> str:
    """The measurements as text: seconds, CPU seconds, and MB beyond the imports in brackets."""
    parts = ["read_only", "streamed_curve", "streamed_completion", "streamed_probe_scores"]
    parts.append("numpy_svd")
    head = "tasks  examples   " + "  ".join(f"{name:>22}" for name in parts)
    text = [head + "  SVD/curve seconds  memory  R2 apart"]
    for line in lines:
        cells = [_cell(line.get(name)) for name in parts]
        apart = (line.get("seconds_ratio"), line.get("memory_ratio"))
        shown = [f"{value:.1f}" if value else "-" for value in apart]
        difference = line.get("largest_r2_difference")
        shown.append("-" if difference is None else f"{difference:.1e}")
        text.append(
            f"{line['tasks']:5d} {line['examples']:9d}   "
            + "  ".join(f"{cell:>22}" for cell in cells)
            + f"  {shown[0]:>17}  {shown[1]:>6}  {shown[2]:>8}"
        )
    return "\n".join(text)


def _cell(found: dict | None) -> str:
    if found is None:
        return "-"
    return (
        found.get("failed")
        or f"{found['seconds']:.2f}, {found['cpu_seconds']:.2f} ({found['peak_mb']:.0f})"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=85)
    parser.add_argument("--examples", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--svd-examples", type=int, default=1_000_000, help="SVD up to this N")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/lowrank.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        lines = [
            compare(Path(folder), options.tasks, examples, options.svd_examples)
            for examples in options.examples
        ]
    print(table(lines))
    about = {"numpy": np.__version__, "cpus": os.cpu_count(), "chunk": moments.CHUNK}
    about["threads"] = os.environ.get("OMP_NUM_THREADS", "not set")
    write_json(options.output, {"about": about, "lines": lines})
    print(json.dumps(about))


if __name__ == "__main__":
    main()
