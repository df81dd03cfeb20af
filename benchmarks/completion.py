r"""Completion against scikit-surprise and plain logistic MF: same data, probes and process.

    python benchmarks/completion.py results/default/*/Z.parquet --tasks tasks.csv
    python benchmarks/completion.py --sizes 1000 10000      # synthetic matrices, 46 + 2 tasks

Error: root mean square over unprobed cells of the test tasks, mean over probe seeds, as a ratio
to the best of scikit-surprise. Time: seconds for one test task all in, learning included, as
scikit-surprise learns anew for each. Where N * epochs is over --timed, its gradient descent runs
`--epochs` epochs and the settings' epochs E are extrapolated by

    seconds = seconds(1 epoch) + (E - 1) * (seconds(`--epochs`) - seconds(1)) / (`--epochs` - 1)

Errors of scikit-surprise are of full runs where N * E is at most --full, else they are left out.
With --siblings A B, `gaussian` with chosen probes, with the row of the sibling and with both, as
ratios to random probes and to the best of scikit-surprise, with standard errors over test tasks:

    python benchmarks/completion.py --siblings results/default/{olmo-0.7m,pythia-0.6m}/Z.parquet \
        --probes 5 10 30 --seeds 40

With --coverage, the share of cells, of means of domains and of task means that lie inside 90
percent intervals, and the intervals' widths, for tasks of groups that are left out. Every task has
draws of random probes of its own. Standard errors are over tasks:

    python benchmarks/completion.py results/default/*/Z.parquet --coverage 100 --probes 30 100

With --interval-sizes, CPU seconds of `gaussian` from an array to the first interval of all cells,
with 84 training tasks and 30 probes, beside their limits. Run it with OMP_NUM_THREADS=1:

    python benchmarks/completion.py --interval-sizes 10000 141871

Memory: peak of Python's allocations of one fit and prediction, in a run of its own.
"""

import argparse
import csv
import json
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.special import expit

from lethe.completion import METHODS
from lethe.completion.domain_means import MeanPredictor, domain_masks
from lethe.completion.probes import choose_probes, half_of, random_probes
from lethe.completion.scores import score_rows
from lethe.completion.splits import Split, make_splits
from lethe.completion.threshold import expected_f1_thresholds, tuned_threshold
from lethe.config.task_table import read_task_table
from lethe.data.examples import read_upstream
from lethe.matrix import forgetting_matrix

EPOCHS = 1000
SURPRISE = ("surprise_additive", "surprise_knn", "surprise_svd")
OURS = ("column_mean", "additive", "affine", "knn", "mf", "gaussian")
Task = tuple[np.ndarray, np.ndarray, np.ndarray]
# Training tasks and probes whose first interval is timed, and the goals in CPU seconds by N.
TIMED_TASKS = 84
TIMED_PROBES = 30
SECONDS_LIMITS = {10_000: 0.3, 141_871: 0.8}


def surprise_algorithm(name: str, epochs: int):
    """scikit-surprise with the paper's settings (protocol 1.6) but for the epochs."""
    import surprise

    sgd = {"method": "sgd", "n_epochs": epochs}
    if name == "surprise_additive":
        return surprise.BaselineOnly(bsl_options=sgd, verbose=False)
    if name == "surprise_knn":
        similar = {"name": "msd", "user_based": True}
        return surprise.KNNBaseline(k=40, sim_options=similar, bsl_options=sgd, verbose=False)
    return surprise.SVD(
        n_factors=5, n_epochs=epochs, lr_all=0.005, reg_all=0, init_std_dev=0.001, random_state=0
    )


def by_surprise(name: str, train: np.ndarray, index, values, epochs: int = EPOCHS) -> np.ndarray:
    """Learns from the training rows and the probes, then predicts the row."""
    import pandas as pd
    import surprise

    rows, columns = np.nonzero(np.isfinite(train))
    frame = pd.DataFrame(
        {
            "task": np.append(rows, np.full(len(index), len(train))),
            "example": np.append(columns, index),
            "z": np.append(train[rows, columns], values),
        }
    )
    reader = surprise.Reader(rating_scale=(-100, 100))
    data = surprise.Dataset.load_from_df(frame, reader).build_full_trainset()
    algorithm = surprise_algorithm(name, epochs).fit(data)
    return np.array([algorithm.predict(len(train), j).est for j in range(train.shape[1])])


def by_lethe(name: str, train: np.ndarray, index, values) -> np.ndarray:
    """The same with a method of this library, at its defaults."""
    return METHODS[name]().fit(train).predict(index, values)


def plain_logistic_mf(train, index, values, rank: int = 5, steps: int = 5000) -> np.ndarray:
    """Full-batch gradient descent, step 1e-3, decay 0.1, start sd 0.005 (protocol 1.5)."""
    rng = np.random.default_rng(0)
    z = np.vstack([train, np.zeros(train.shape[1])])
    known = np.ones_like(z)
    known[-1] = 0
    z[-1, index], known[-1, index] = values, 1
    u, v = rng.normal(0, 0.005, (len(z), rank)), rng.normal(0, 0.005, (rank, z.shape[1]))
    for _ in range(steps):
        missed = known * (expit(u @ v) - z)
        u, v = u - 1e-3 * (missed @ v.T + 0.1 * u), v - 1e-3 * (u.T @ missed + 0.1 * v)
    return expit(u[-1] @ v)


def rmse(predict: Callable, test: np.ndarray, k: int, seeds: range) -> float:
    """Mean over seeds of the error pooled over unprobed cells of all test tasks."""
    errors = []
    for seed in seeds:
        index = random_probes(test.shape[1], k, seed)
        hidden = np.setdiff1d(np.arange(test.shape[1]), index)
        missed = [predict(index, row[index])[hidden] - row[hidden] for row in test]
        errors.append(np.sqrt(np.square(missed).mean()))
    return float(np.mean(errors))


def seconds(call: Callable) -> float:
    """Wall-clock seconds of a call; of three quick ones the best."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
        if taken[-1] > 2:
            break
    return min(taken)


def peak_mb(call: Callable) -> float:
    """Peak of what Python allocates during a call, in MB; NumPy's arrays are counted."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def surprise_seconds(name: str, task: Task, epochs: int, timed: float) -> float:
    """Seconds of EPOCHS epochs; of a long run from those of 1 and of `epochs` (formula above)."""
    if task[0].shape[1] * EPOCHS <= timed:
        return seconds(partial(by_surprise, name, *task))
    one = seconds(partial(by_surprise, name, *task, epochs=1))
    more = seconds(partial(by_surprise, name, *task, epochs=epochs))
    whole = one + (EPOCHS - 1) * max(more - one, 0) / (epochs - 1)
    print(
        f"{name}: {one:.3g} + {EPOCHS - 1} * ({more:.3g} - {one:.3g}) / {epochs - 1} = {whole:.3g}"
    )
    return whole


def compare(train: np.ndarray, test: np.ndarray, k: int, settings) -> list[dict]:
    """A line a method: error, seconds a test task, peak memory."""
    lines, seeds = [], range(settings.seeds)
    index = random_probes(train.shape[1], k, 0)
    task = (train, index, test[0][index])
    for name in SURPRISE:
        full = train.shape[1] * EPOCHS <= settings.full
        error = rmse(partial(by_surprise, name, train), test, k, seeds) if full else None
        taken = surprise_seconds(name, task, settings.epochs, settings.timed)
        memory = peak_mb(partial(by_surprise, name, *task, epochs=1))
        lines.append({"method": name, "rmse": error, "seconds": taken, "peak_mb": memory})
    for name in OURS:
        # All that a fit looks at are the training rows: learned once for all tasks and seeds.
        error = rmse(METHODS[name]().fit(train).predict, test, k, seeds)
        call = partial(by_lethe, name, *task)
        taken, memory = seconds(call), peak_mb(call)
        lines.append({"method": name, "rmse": error, "seconds": taken, "peak_mb": memory})
    return lines


def compare_binary(train: np.ndarray, test: np.ndarray, k: int, settings) -> list[dict]:
    """A line a method: F1, AUC over unprobed cells, seconds a test task.

    The plain logistic MF calls what it gives more than one half, as the paper does; lethe's
    methods what lies above the threshold that is best on the training tasks, and `logistic_stack`
    what lies above the threshold of best expected F1 on each test task.
    """
    predictors = {"plain_logistic_mf": partial(plain_logistic_mf, train)}
    for name in ("column_mean", "logistic_mf", "logistic_fa", "gaussian", "logistic_stack"):
        predictors[name] = METHODS[name]().fit(train).predict
    lines = []
    for name, predict in predictors.items():
        scores = []
        cut = 0.5
        if name in METHODS and name != "logistic_stack":
            cut = tuned_threshold(METHODS[name], train, k)
        # Every seed of 5,000 full-batch steps would take the afternoon.
        for seed in range(1 if name.startswith("plain") else settings.seeds):
            index = random_probes(train.shape[1], k, seed)
            hidden = np.setdiff1d(np.arange(train.shape[1]), index)
            rows = np.array([predict(index, row[index])[hidden] for row in test])
            if name == "logistic_stack":
                cut = expected_f1_thresholds(rows)
            scores.append(score_rows(test[:, hidden], rows, 0.5, cut))
        _, _, _, _, _, f1, auc = np.nanmean(np.concatenate(scores), axis=0).tolist()
        index = random_probes(train.shape[1], k, 0)
        call = partial(by_lethe, name, train) if name in METHODS else predict
        taken = seconds(partial(call, index, test[0][index]))
        lines.append({"method": name, "f1": f1, "auc": auc, "seconds": taken})
    return lines


@dataclass
class PeerErrors:
    """Squared errors (tasks,) of scikit-surprise by setting, in a file that a later run reads.

    One fit takes seconds, and every test task and draw of probes needs its own, so an interrupted
    run goes on where it stopped.
    """

    path: Path
    errors: dict[str, list[float]]

    @classmethod
    def load(cls, path: Path) -> "PeerErrors":
        """The errors of the file, or none if it does not exist."""
        errors = json.loads(path.read_text("utf-8")) if path.exists() else {}
        return cls(path, errors)

    def measure(self, key: str, fits: list[Callable[[], float]]) -> np.ndarray:
        """Errors of the tasks; measures those that the file does not have."""
        errors = self.errors.setdefault(key, [])
        for fit in fits[len(errors) :]:
            errors.append(fit())
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.errors, indent=1) + "\n", encoding="utf-8")
        return np.array(errors)


def half_error(
    name: str, train: np.ndarray, row: np.ndarray, index: np.ndarray, scored: np.ndarray
) -> float:
    """Mean squared error of a peer on one test task, at the scored columns."""
    predicted = by_surprise(name, train, index, row[index])
    return float(np.square(predicted - row)[scored].mean())


def peer_errors(
    models: dict[str, tuple[np.ndarray, np.ndarray]], peers: list[str], settings
) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """(model, k) -> peer -> squared errors (seeds, tasks), from random probes in one half.

    Seeds are measured one by one until `--peer-minutes` are over; the first is always complete.
    """
    store = PeerErrors.load(settings.peer_errors)
    found: dict[tuple[str, int], dict[str, list]] = {}
    start = time.monotonic()
    for seed in range(settings.peer_seeds):
        if seed and time.monotonic() - start > 60 * settings.peer_minutes:
            break
        for name, (train, test) in models.items():
            half = half_of(train.shape[1], seed)
            for k in settings.probes:
                index = random_probes(train.shape[1], k, seed, allowed=half)
                for peer in peers:
                    fits = [partial(half_error, peer, train, row, index, ~half) for row in test]
                    errors = store.measure(f"{name} k={k} seed={seed} {peer}", fits)
                    found.setdefault((name, k), {}).setdefault(peer, []).append(errors)
    stacked = {}
    for setting, by_peer in found.items():
        stacked[setting] = {peer: np.array(errors) for peer, errors in by_peer.items()}
    return stacked


def design_errors(
    train: np.ndarray,
    test: np.ndarray,
    sibling_train: np.ndarray,
    sibling_test: np.ndarray,
    k: int,
    seeds: range,
) -> dict[str, np.ndarray]:
    """Squared errors (seeds, tasks) of `gaussian` by design, scored in the half without probes.

    Designs are random or A-optimal probes, without and with the row of the sibling.
    """
    method = METHODS["gaussian"]().fit(train, other=sibling_train)
    errors: dict[str, list[np.ndarray]] = {}
    for seed in seeds:
        half = half_of(train.shape[1], seed)
        for choice in ("random", "a_optimal"):
            index = choose_probes(train, k, choice, seed=seed, allowed=half)
            for other in (None, sibling_test):
                predicted = method.predict(index, test[:, index], other=other)
                error = np.square(predicted - test)[:, ~half].mean(axis=1)
                design = choice if other is None else f"{choice}+sibling"
                errors.setdefault(design, []).append(error)
    return {design: np.array(values) for design, values in errors.items()}


def ratio_over_tasks(errors: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    """Ratio of RMSE over tasks, from mean squared errors (tasks,), and its jackknife error."""
    ratio = float(np.sqrt(errors.mean() / base.mean()))
    count = len(errors)
    without = np.sqrt((errors.sum() - errors) / (base.sum() - base))
    spread = np.square(without - without.mean()).sum()
    return ratio, float(np.sqrt((count - 1) / count * spread))


def compare_siblings(settings) -> list[dict]:
    """The two matrices as each other's sibling: `gaussian` by design, and scikit-surprise's best.

    Both are scored on the same half of the columns. The peer gets random probes; it has no use for
    the sibling. Its ratio uses the seeds that it was measured on.
    """
    models = {str(path): parts(path, settings.tasks) for path in settings.siblings}
    of_peers = peer_errors(models, settings.peers, settings)
    lines = []
    for name, other in (tuple(models), tuple(models)[::-1]):
        for k in settings.probes:
            errors = design_errors(*models[name], *models[other], k=k, seeds=range(settings.seeds))
            line = {"matrix": name, "k": k, "seeds": settings.seeds}
            base = errors["random"].mean(axis=0)
            line["rmse"] = float(np.sqrt(base.mean()))
            peers = of_peers.get((name, k), {})
            if peers:
                best = min(peers, key=lambda peer: peers[peer].mean())
                line["peer"] = best
                line["peer_seeds"] = len(peers[best])
                line["peer_rmse"] = float(np.sqrt(peers[best].mean()))
            for design, values in errors.items():
                line[design] = ratio_over_tasks(values.mean(axis=0), base)
                if peers:
                    same_seeds = values[: len(peers[best])].mean(axis=0)
                    line[f"{design}/peer"] = ratio_over_tasks(same_seeds, peers[best].mean(axis=0))
            lines.append(line)
            show_siblings(line)
    return lines


def show_siblings(line: dict) -> None:
    """Prints the ratios of one matrix and number of probes."""
    print(f"\n{line['matrix']}, k={line['k']}: random probes {line['rmse']:.4f} nats", flush=True)
    if "peer" in line:
        print(f"  {line['peer']} {line['peer_rmse']:.4f} nats ({line['peer_seeds']} seeds)")
    for design in ("random", "a_optimal", "random+sibling", "a_optimal+sibling"):
        ratio, error = line[design]
        text = f"  {design:18} {ratio:.3f} +- {error:.3f} of random probes"
        if f"{design}/peer" in line:
            ratio, error = line[f"{design}/peer"]
            text += f", {ratio:.3f} +- {error:.3f} of the peer"
        print(text, flush=True)


def coverage_of_split(
    values: np.ndarray, domains: list[str], split: Split, *, k: int, draws: int
) -> dict[str, np.ndarray]:
    """Scores (tasks,) of 90 percent intervals of the split's test tasks, as means over draws.

    There is a coverage and a width of the unprobed cells, and of the means over these cells by
    domain and for the task.
    """
    examples = values.shape[1]
    method = METHODS["gaussian"]().fit(values[split.train])
    _, of_domains = domain_masks(domains)
    predictor = MeanPredictor(method, np.vstack([np.ones((1, examples), bool), of_domains]))
    scores: dict[str, list[float]] = {}
    for row in split.test:
        truth = values[row]
        of_task: dict[str, list[float]] = {}
        for draw in range(draws):
            index = random_probes(examples, k, 1000 * int(row) + draw)
            unprobed = np.ones(examples, dtype=bool)
            unprobed[index] = False
            low, high = method.predict_interval(index, truth[index], 0.9)
            inside = (low <= truth) & (truth <= high)
            of_task.setdefault("cells", []).append(float(inside[unprobed].mean()))
            of_task.setdefault("cells width", []).append(float((high - low)[unprobed].mean()))
            means = predictor.predict(index, truth[index], levels=[0.9], among=unprobed)
            members = predictor.members & unprobed
            counts = members.sum(axis=1)
            true_means = members @ truth / np.maximum(counts, 1)
            covered = (means.low[0, 0] <= true_means) & (true_means <= means.high[0, 0])
            width = means.high[0, 0] - means.low[0, 0]
            measured = counts > 0
            measured[0] = False
            of_task.setdefault("domain means", []).append(float(covered[measured].mean()))
            of_task.setdefault("domain means width", []).append(float(width[measured].mean()))
            of_task.setdefault("task mean", []).append(float(covered[0]))
            of_task.setdefault("task mean width", []).append(float(width[0]))
        for name, of_draws in of_task.items():
            scores.setdefault(name, []).append(float(np.mean(of_draws)))
    return {name: np.array(of_tasks) for name, of_tasks in scores.items()}


def measure_coverage(path: Path, settings) -> list[dict]:
    """One line per number of probes: coverage and width on tasks of left-out groups."""
    z = forgetting_matrix.read_matrix(path)
    table, problems = read_task_table(settings.tasks)
    if problems:
        raise SystemExit("\n".join(problems))
    upstream = read_upstream(path.parent.parent / "upstream.parquet")
    domain_of = {example.example_id: example.domain for example in upstream}
    complete = np.isfinite(z.values).all(axis=0)
    values = z.values[:, complete].astype(np.float64)
    domains = []
    for example_id, is_complete in zip(z.example_ids, complete, strict=True):
        if is_complete:
            domains.append(domain_of[example_id])
    splits = [split for split in make_splits(z, table) if split.group is not None]
    lines = []
    for k in settings.probes:
        by_split = []
        for split in splits:
            by_split.append(coverage_of_split(values, domains, split, k=k, draws=settings.coverage))
        line = {"matrix": str(path), "k": k, "draws": settings.coverage}
        print(f"\n{path}, k={k}, {settings.coverage} draws per task, groups left out")
        for name in by_split[0]:
            of_tasks = np.concatenate([scores[name] for scores in by_split])
            error = float(of_tasks.std(ddof=1) / np.sqrt(len(of_tasks)))
            line[name] = [float(of_tasks.mean()), error]
            print(f"  {name:20} {of_tasks.mean():.4f} +- {error:.4f}", flush=True)
        lines.append(line)
    return lines


def cpu_seconds(call: Callable) -> float:
    """CPU seconds of a call; of three the best."""
    spent = []
    for _ in range(3):
        start = time.process_time()
        call()
        spent.append(time.process_time() - start)
    return min(spent)


def time_first_interval(examples: int) -> dict:
    """CPU seconds of fit, first prediction and first interval together, beside the limit."""
    z = synthetic(TIMED_TASKS + 1, examples)
    index = random_probes(examples, TIMED_PROBES, 0)

    def from_array_to_interval() -> None:
        method = METHODS["gaussian"]().fit(z[:-1])
        method.predict(index, z[-1, index])
        method.predict_interval(index, z[-1, index], 0.9)

    line = {"examples": examples, "cpu_seconds": cpu_seconds(from_array_to_interval)}
    line["limit"] = SECONDS_LIMITS.get(examples)
    text = f"fit, prediction and interval, {TIMED_TASKS} x {examples}, k={TIMED_PROBES}"
    goal = f" (limit {line['limit']})" if line["limit"] else ""
    print(f"{text}: {line['cpu_seconds']:.3f} CPU seconds{goal}", flush=True)
    return line


def synthetic(tasks: int, examples: int, seed: int = 0) -> np.ndarray:
    """Eight components, column noise and heavy tails, as Z of language models has."""
    rng = np.random.default_rng(seed)
    strengths = rng.normal(size=(tasks, 8)) / np.arange(1, 9)
    loads = rng.standard_t(4, (8, examples))
    noise = np.exp(rng.normal(0, 0.6, examples)) * rng.standard_t(4, (tasks, examples))
    return 0.2 * strengths @ loads + 0.1 * np.abs(loads[0]) + 0.1 * noise


def show(title: str, lines: list[dict]) -> None:
    """Prints a table; ratios are to the best of scikit-surprise where there is one."""
    print(f"\n{title}")
    peers = [line for line in lines if line["method"] in SURPRISE]
    best = min((line["rmse"] for line in peers if line["rmse"]), default=None)
    fastest = min((line["seconds"] for line in peers), default=None)
    for line in lines:
        cells = [f"{line['method']:18}"]
        cells += [
            f"{key} {line[key]:.4g}"
            for key in ("rmse", "f1", "auc", "seconds", "peak_mb")
            if line.get(key) is not None
        ]
        if best and line["rmse"]:
            line["rmse_ratio"] = line["rmse"] / best
            cells.append(f"rmse ratio {line['rmse_ratio']:.3f}")
        if fastest:
            line["times_faster"] = fastest / line["seconds"]
            cells.append(f"{line['times_faster']:.0f} times the speed of the fastest peer")
        print("  ".join(cells), flush=True)


def parts(path: Path, table: Path) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows of a Z by its task table; columns with a NaN are dropped."""
    z = forgetting_matrix.read_matrix(path)
    with table.open(encoding="utf-8", newline="") as stream:
        split = {row["name"]: row["split"] for row in csv.DictReader(stream)}
    values = z.values[:, np.isfinite(z.values).all(axis=0)].astype(np.float64)
    rows = {of: z.rows([task for task in z.tasks if split[task] == of]) for of in ("train", "test")}
    return values[rows["train"]], values[rows["test"]]


def main() -> None:
    """Runs what the arguments ask for, prints tables and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("matrices", nargs="*", type=Path, help="Z.parquet files")
    parser.add_argument("--tasks", type=Path, default=Path("tasks.csv"))
    parser.add_argument("--sizes", nargs="*", type=int, default=[], help="N of synthetic Z")
    parser.add_argument("--probes", nargs="*", type=int, default=[5, 30])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=50, help="timed, if all would take long")
    parser.add_argument("--timed", type=float, default=1e7, help="largest N * epochs timed in full")
    parser.add_argument("--full", type=float, default=2e6, help="largest N * epochs scored in full")
    parser.add_argument("--binary", type=float, help="also Z > this many nats, as 0 and 1")
    parser.add_argument(
        "--coverage", type=int, default=0, help="draws of probes per task; measures nothing else"
    )
    parser.add_argument("--interval-sizes", nargs="*", type=int, default=[], help="N to time")
    parser.add_argument(
        "--siblings", nargs=2, type=Path, help="two Z.parquet of the same tasks and examples"
    )
    parser.add_argument("--peers", nargs="*", choices=SURPRISE, default=list(SURPRISE))
    parser.add_argument("--peer-seeds", type=int, default=2, help="with --siblings")
    parser.add_argument("--peer-minutes", type=float, default=10, help="begin no seed afterwards")
    parser.add_argument(
        "--peer-errors", type=Path, default=Path("results/benchmark_completion_peers.json")
    )
    parser.add_argument("--out", type=Path, default=Path("results/benchmark_completion.json"))
    settings = parser.parse_args()
    found = [time_first_interval(size) for size in settings.interval_sizes]
    if settings.coverage:
        for path in settings.matrices:
            found += measure_coverage(path, settings)
        settings.matrices = []
    data = {str(path): parts(path, settings.tasks) for path in settings.matrices}
    for size in settings.sizes:
        z = synthetic(48, size)
        data[f"synthetic N={size}"] = z[:46], z[46:]
    for name, (train, test) in data.items():
        for k in settings.probes:
            lines = compare(train, test, k, settings)
            show(
                f"{name}: {train.shape[0]} x {train.shape[1]}, {len(test)} test tasks, k={k}", lines
            )
            found += [{"matrix": name, "k": k, **line} for line in lines]
            if settings.binary is not None:
                lines = compare_binary(
                    *[(rows > settings.binary).astype(float) for rows in (train, test)], k, settings
                )
                show(f"{name}: above {settings.binary} nats, k={k}", lines)
                found += [{"matrix": name, "k": k, "binary": settings.binary, **x} for x in lines]
    if settings.siblings:
        found += compare_siblings(settings)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    settings.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
