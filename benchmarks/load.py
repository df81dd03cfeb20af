"""Large matrices through the rules that read Z: seconds and peak memory, each in its own process.

    python benchmarks/load.py                      # all cases below
    python benchmarks/load.py --case 500x1000      # one of them
    python benchmarks/load.py --tasks 5000         # a dry run over a long task table

The data are synthetic: three factors and noise, five groups of tasks, every fourth task a test
task. Completion runs with the default settings (six methods, four numbers of probes, ten seeds).
Memory is the peak of the process, as `ru_maxrss` counts it, and includes Python and its libraries.
"""

import argparse
import csv
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lethe.completion.evaluation import evaluate
from lethe.config.analysis_settings import CompletionSettings
from lethe.config.task_table import Task
from lethe.matrix import forgetting_matrix, own_matrix
from lethe.matrix.sanity import check_sanity

# Case -> the goal in seconds and in MB.
SCORING = {"500x1000": (40, 1000), "20x2000000": (180, 3000), "3000x100": (120, 3000)}
IMPORT = {"20x2000000": (30, 1000)}
PLAN_SECONDS = 10
GROUPS = 5


def synthetic_values(tasks: int, examples: int) -> np.ndarray:
    """Z (tasks, examples), float32 in nats."""
    rng = np.random.default_rng(0)
    values = (
        0.1
        * rng.standard_normal((tasks, 3), dtype=np.float32)
        @ rng.standard_normal((3, examples), dtype=np.float32)
    )
    values += 0.1 * rng.standard_normal((1, examples), dtype=np.float32)
    for row in values:
        row += 0.1 * rng.standard_normal(examples, dtype=np.float32)
    return values


def task_names(count: int) -> list[str]:
    """Names of the tasks, in the order of the rows."""
    return [f"task{number:04d}" for number in range(count)]


def task_table(count: int) -> dict[str, Task]:
    """A task table of five groups."""
    tasks = {}
    for number, name in enumerate(task_names(count)):
        split = "test" if number % 4 == 3 else "train"
        tasks[name] = Task(name=name, group=f"group{number % GROUPS}", split=split)
    return tasks


def score(path: Path, count: int) -> None:
    """Reads Z and scores completion, as the rule score_completion does."""
    settings = CompletionSettings()
    matrix = forgetting_matrix.read_matrix(path)
    evaluate(
        matrix,
        task_table(count),
        methods=settings.methods,
        probes=[k for k in settings.probes if k < len(matrix.example_ids)],
        seeds=settings.seeds,
        threshold=settings.threshold,
        options=settings.options(),
    )


def import_own(path: Path, count: int) -> None:
    """Reads an .npy file and writes Z, as the rule import_matrix does."""
    matrix = own_matrix.read_own_matrix(path, task_names(count), "tasks_in_rows")
    check_sanity(matrix)
    forgetting_matrix.write_matrix(path.with_suffix(".parquet"), own_matrix.infinite_to_nan(matrix))


STAGES = {"score": score, "import": import_own}


def measure(stage: str, case: str, folder: Path) -> dict:
    """Seconds and peak MB of a stage in a process of its own."""
    count, examples = (int(part) for part in case.split("x"))
    values = synthetic_values(count, examples)
    if stage == "import":
        path = folder / f"{case}.npy"
        np.save(path, values)
    else:
        path = folder / f"{case}.parquet"
        ids = [f"example-{number:06d}" for number in range(examples)]
        forgetting_matrix.write_matrix(
            path, forgetting_matrix.Matrix(values, task_names(count), ids)
        )
    del values
    command = [sys.executable, __file__, "--stage", stage, "--file", str(path), "--count"]
    process = subprocess.run([*command, str(count)], capture_output=True, text=True, check=True)
    return {"stage": stage, "case": case, **json.loads(process.stdout.splitlines()[-1])}


def run_stage(stage: str, path: Path, count: int) -> None:
    """Runs a stage in this process and prints its seconds and peak as JSON."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    start = time.perf_counter()
    STAGES[stage](path, count)
    seconds = time.perf_counter() - start
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = usage.ru_utime + usage.ru_stime
    line = {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": usage.ru_maxrss / 1024}
    print(json.dumps({name: round(value, 1) for name, value in line.items()}))


def own_matrix_experiment(count: int, folder: Path) -> dict:
    """An experiment with a matrix that was measured elsewhere."""
    np.save(folder / "Z.npy", synthetic_values(count, 100))
    return {"matrix": {"path": str(folder / "Z.npy"), "layout": "tasks_in_rows"}}


def measured_experiment(count: int, folder: Path) -> dict:
    """An experiment that measures one model."""
    hub = {"kind": "hub", "path": "someone/flan"}
    return {
        "sources": {"flan": {**hub, "by": "task"}, "dolma": {**hub, "text": "{text}"}},
        "upstream": {"examples": 10_000, "domains": {"dolma": "dolma:"}},
        "models": {"m": {"source": "hub", "path": "someone/m"}},
    }


PLANS = {"own matrix": own_matrix_experiment, "one model": measured_experiment}


def plan(kind: str, count: int, folder: Path) -> dict:
    """Seconds of a dry run over a task table of this many lines."""
    with (folder / "tasks.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "group", "split", "source"])
        for task in task_table(count).values():
            writer.writerow([task.name, task.group, task.split, f"flan:{task.name}"])
    experiment = {"experiment": "load", "tasks": str(folder / "tasks.csv")}
    experiment |= PLANS[kind](count, folder)
    (folder / "load.yaml").write_text(json.dumps(experiment))
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", "--quiet", "rules"]
    command += ["--snakefile", str(Path(__file__).parents[1] / "Snakefile")]
    command += ["--directory", str(folder), "--configfile", str(folder / "load.yaml")]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "stage": "plan",
        "case": f"{count} tasks, {kind}",
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
    }


def main() -> None:
    """Prints the table, one line per case as it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", help="only this one, such as 500x1000")
    parser.add_argument("--tasks", type=int, help="only the dry run, with this many tasks")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--count", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        run_stage(arguments.stage, arguments.file, arguments.count)
        return
    results = []
    print("| Stage | Case | Seconds (goal) | CPU seconds | Peak MB (goal) |", flush=True)
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for stage, goals in (("score", SCORING), ("import", IMPORT)):
            for case, (seconds, megabytes) in goals.items():
                if arguments.tasks or arguments.case not in (None, case):
                    continue
                line = measure(stage, case, Path(folder))
                results.append(line)
                print(
                    f"| {stage} | {case} | {line['seconds']} ({seconds}) | "
                    f"{line['cpu_seconds']} | {line['peak_mb']:.0f} ({megabytes}) |",
                    flush=True,
                )
        if arguments.tasks or arguments.case is None:
            for kind in PLANS:
                line = plan(kind, arguments.tasks or 5000, Path(folder))
                results.append(line)
                print(
                    f"| plan | {line['case']} | {line['seconds']} ({PLAN_SECONDS}) | "
                    f"{line['cpu_seconds']} | |",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
