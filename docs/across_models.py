"""Tables of docs/lab/across-models.md: the rank of Z by size of the model, and Z as a prior.

    python docs/across_models.py experiments/model-sizes.yaml docs/lab/tables/model-sizes
    python docs/across_models.py docs/lab/tables/model-sizes

The first command computes the tables from the matrices of a finished experiment and writes them as
small parquet files, which carry the settings and versions that made them. The second prints these
files in Markdown.
"""

import json
import struct
import sys
from collections.abc import Iterator, Mapping
from itertools import permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml
from collect_tables import provenance, write
from markdown_table import print_head, print_line
from scipy import stats

from lethe.analysis.noise import rank_above_shuffled
from lethe.analysis.transfer import align
from lethe.completion.gaussian import Gaussian
from lethe.completion.model_prior import GaussianWithPrior, numbers_of_same_tasks, without_tasks
from lethe.completion.probes import random_probes
from lethe.completion.splits import names_in_split
from lethe.config.task_table import Task, read_task_table
from lethe.matrix.forgetting_matrix import Matrix, read_matrix
from lethe.matrix.rows import read_row
from lethe.statistics import bootstrap_interval

RANKS = (1, 3, 5)
OWN_ROWS = (1, 2, 5, 10, 21)
PROBES = (0, 10, 30)
SEEDS = range(5)
DRAWS = 2000
# A source may have this many times the parameters of its target: models of one size are predicted
# from each other, and a large model only from smaller ones.
LARGEST_SOURCE = 1.5


def main(arguments: list[str]) -> None:
    """Writes the tables of an experiment (its file and a folder), or prints those of a folder."""
    if len(arguments) == 2:
        collect(Path(arguments[0]), Path(arguments[1]))
    else:
        print_tables(Path(arguments[0]))


# ---- computing


def collect(experiment: Path, folder: Path) -> None:
    """Computes both tables from the matrices of a finished experiment."""
    settings = yaml.safe_load(experiment.read_text("utf-8"))
    results = Path("results") / settings["experiment"]
    models = list(settings["models"])
    files = []
    for model in models:
        files += sorted((results / model).glob("rows/*.parquet"))
    made_by = {"settings": settings, "files": len(files), **provenance(files)}
    sizes = {model: count_parameters(results / model / "base") for model in models}
    matrices = share_tasks({model: read_matrix(results / model / "Z.parquet") for model in models})
    tasks, _ = read_task_table(Path(settings["tasks"]))
    folder.mkdir(parents=True, exist_ok=True)
    # The rank of models of one size answers no question about size.
    if max(sizes.values()) > LARGEST_SOURCE * min(sizes.values()):
        lines = base_loss_lines(results, sizes) + rank_lines(matrices, sizes)
        write(folder / "rank.parquet", pd.DataFrame(lines), made_by)
    lines = list(prior_lines(matrices, sizes, tasks))
    write(folder / "prior.parquet", pd.DataFrame(lines), made_by)


def base_loss_lines(results: Path, sizes: Mapping[str, int]) -> list[dict]:
    """Mean loss of each base model on the upstream examples, in nats per token."""
    lines = []
    for model, parameters in sizes.items():
        rows = sorted((results / model).glob("rows/*.parquet"))
        loss = float(np.nanmean(read_row(rows[0]).loss_before))
        head = {"model": model, "parameters": parameters, "tasks": len(rows)}
        lines.append({**head, "statistic": "base_loss", "value": loss})
    return lines


def count_parameters(base: Path) -> int:
    """Number of parameters in the weights of a base model; shared ones count once."""
    count = 0
    for file in base.glob("*.safetensors"):
        with file.open("rb") as weights:
            (size,) = struct.unpack("<Q", weights.read(8))
            header = json.loads(weights.read(size))
        for name, tensor in header.items():
            if name != "__metadata__":
                count += int(np.prod(tensor["shape"]))
    return count


def share_tasks(matrices: Mapping[str, Matrix]) -> dict[str, Matrix]:
    """The matrices on the tasks that all models have and the examples without a missing value.

    Raises
    ------
    ValueError
        If the models were scored on different examples.
    """
    shared = set.intersection(*[set(z.tasks) for z in matrices.values()])
    example_ids = next(iter(matrices.values())).example_ids
    rows = {}
    complete = np.ones(len(example_ids), dtype=bool)
    for model, z in matrices.items():
        if z.example_ids != example_ids:
            raise ValueError(f"{model} was scored on other examples than the first model")
        rows[model] = [task for task in z.tasks if task in shared]
        complete &= np.isfinite(z.values[z.rows(rows[model])]).all(axis=0)
    if not complete.all():
        print(f"{(~complete).sum()} of {len(complete)} examples lack a value and are left out")
    kept = [name for name, known in zip(example_ids, complete, strict=True) if known]
    selected = {}
    for model, z in matrices.items():
        values = z.values[z.rows(rows[model])][:, complete].astype(np.float64)
        selected[model] = Matrix(values=values, tasks=rows[model], example_ids=kept)
    return selected


def rank_lines(matrices: Mapping[str, Matrix], sizes: Mapping[str, int]) -> list[dict]:
    """How low the rank of each model's Z is: one line per model and statistic.

    `difference` is that to the first model. Tasks are resampled, or left out, in all models alike.

    The models are in the order of the experiment's file, from the smallest to the largest.

    - `mean`: mean forgetting in nats, with a bootstrap interval over tasks.
    - `left_out_r2_<r>`: the share of a row's squared deviations from the mean of the other rows
      that lies in the first r components of these other rows. All tasks are left out in turn. The
      interval is a bootstrap over tasks.
    - `effective_rank`: (sum of squared singular values)^2 / sum of their fourth powers
      (`effective_rank`). The interval is a jackknife interval over tasks on a logarithmic scale,
      because a resampled task that is drawn twice has the rank of one. Its difference is a ratio.
    - `components`: number beyond task and example means that exceed those of shuffled rows
      (`rank_above_shuffled`).
    """
    lines = []
    first = next(iter(matrices))
    means = {model: z.values.mean(axis=1) for model, z in matrices.items()}
    explained = {model: explained_squares(z.values) for model, z in matrices.items()}
    for model, z in matrices.items():
        head = {"model": model, "parameters": sizes[model], "tasks": len(z.tasks)}
        differences = means[model] - means[first]
        lines.append(
            {
                **head,
                "statistic": "mean",
                **_interval(means[model].mean(), bootstrap_interval(means[model])),
                **_difference(differences.mean(), bootstrap_interval(differences)),
            }
        )
        for rank in RANKS:
            value, drawn = resampled_share(explained[model], rank)
            of_first, drawn_of_first = resampled_share(explained[first], rank)
            lines.append(
                {
                    **head,
                    "statistic": f"left_out_r2_{rank}",
                    **_interval(value, np.quantile(drawn, [0.025, 0.975])),
                    **_difference(
                        value - of_first, np.quantile(drawn - drawn_of_first, [0.025, 0.975])
                    ),
                }
            )
        logarithm, without = leave_each_out(z.values)
        of_first, without_of_first = leave_each_out(matrices[first].values)
        ends = jackknife_interval(logarithm, without)
        ratio = logarithm - of_first
        ends_of_ratio = jackknife_interval(ratio, without - without_of_first)
        lines.append(
            {
                **head,
                "statistic": "effective_rank",
                **_interval(np.exp(logarithm), np.exp(ends)),
                **_difference(np.exp(ratio), np.exp(ends_of_ratio)),
            }
        )
        above = rank_above_shuffled(z.values, additive=True)
        lines.append({**head, "statistic": "components", "value": float(above)})
    return lines


def _interval(value: float, ends: tuple[float, float] | np.ndarray) -> dict[str, float]:
    return {"value": float(value), "low": float(ends[0]), "high": float(ends[1])}


def _difference(value: float, ends: tuple[float, float] | np.ndarray) -> dict[str, float]:
    return {
        "difference": float(value),
        "difference_low": float(ends[0]),
        "difference_high": float(ends[1]),
    }


def effective_rank(values: np.ndarray) -> float:
    """Participation ratio of the squared singular values of Z (M, N).

    Rows are standardised first, because a few tasks with large forgetting would decide alone, and
    then the example means are subtracted.
    """
    rows = values - values.mean(axis=1, keepdims=True)
    rows /= rows.std(axis=1, keepdims=True)
    centred = rows - rows.mean(axis=0)
    squares = np.maximum(np.linalg.eigvalsh(centred @ centred.T), 0.0)
    return float(np.square(squares.sum()) / np.square(squares).sum())


def explained_squares(values: np.ndarray) -> np.ndarray:
    """(M, 1 + R): per task, all squares and those in the first components of the other rows."""
    squares = []
    for row in range(len(values)):
        others = np.delete(values, row, axis=0)
        mean = others.mean(axis=0)
        directions = np.linalg.svd(others - mean, full_matrices=False)[2]
        deviation = values[row] - mean
        projected = np.square(directions @ deviation)
        squares.append([np.square(deviation).sum(), *np.cumsum(projected)])
    return np.array(squares)


def resampled_share(squares: np.ndarray, rank: int) -> tuple[float, np.ndarray]:
    """Explained share at a rank, and that of `DRAWS` resamples of the tasks."""
    count = len(squares)
    weights = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), DRAWS)
    drawn = (weights @ squares[:, rank]) / (weights @ squares[:, 0])
    return float(squares[:, rank].sum() / squares[:, 0].sum()), drawn


def leave_each_out(values: np.ndarray) -> tuple[float, np.ndarray]:
    """The logarithm of the effective rank of all rows, and (M,) without each of them."""
    without = [effective_rank(np.delete(values, row, axis=0)) for row in range(len(values))]
    return float(np.log(effective_rank(values))), np.log(without)


def jackknife_interval(value: float, without: np.ndarray) -> tuple[float, float]:
    """95 percent interval from the values without each of the tasks (Efron and Stein 1981)."""
    count = len(without)
    variance = (count - 1) / count * np.square(without - without.mean()).sum()
    reach = stats.t.ppf(0.975, count - 1) * np.sqrt(variance)
    return value - reach, value + reach


def prior_lines(
    matrices: Mapping[str, Matrix], sizes: Mapping[str, int], tasks: Mapping[str, Task]
) -> Iterator[dict]:
    """RMSE in nats over unprobed cells of test tasks, by number of own rows and of probes.

    `own` is the Gaussian method on the own rows, `prior` the same with the rows that the source
    has of all training tasks (`GaussianWithPrior`), and `shuffled` with these rows shuffled over
    the examples, a prior that knows nothing. No method reads the source's row of a test task.
    `weight` is the mean weight of a row of the prior. Intervals are a bootstrap over test tasks,
    also that of `difference`, the mean squared error minus that of `own`.
    """
    for source_name, target_name in permutations(matrices, 2):
        if sizes[source_name] > LARGEST_SOURCE * sizes[target_name]:
            continue
        source, target = align(matrices[source_name], matrices[target_name])
        shared = {name: tasks[name] for name in target.tasks if name in tasks}
        train = names_in_split(shared, "train")
        test = names_in_split(shared, "test")
        prior = without_tasks(source, test)
        for count in sorted({min(rows, len(train)) for rows in OWN_ROWS}):
            for probes in PROBES:
                errors, weight = prior_errors(
                    prior, target, train=train, test=test, own_rows=count, probes=probes
                )
                for method, by_task in errors.items():
                    low, high = bootstrap_interval(by_task)
                    differences = by_task - errors["own"]
                    yield {
                        "source": source_name,
                        "target": target_name,
                        "own_rows": count,
                        "probes": probes,
                        "method": method,
                        "rmse": float(np.sqrt(by_task.mean())),
                        "low": float(np.sqrt(low)),
                        "high": float(np.sqrt(high)),
                        **_difference(differences.mean(), bootstrap_interval(differences)),
                        "tasks": len(test),
                        "tasks_lower": int((differences < 0).sum()),
                        "weight": weight if method == "prior" else float("nan"),
                    }


def prior_errors(
    prior: Matrix,
    target: Matrix,
    *,
    train: list[str],
    test: list[str],
    own_rows: int,
    probes: int,
) -> tuple[dict[str, np.ndarray], float]:
    """Mean squared errors (tasks,) of each method, as means over seeds, and the mean weight."""
    errors: dict[str, list[np.ndarray]] = {}
    weights = []
    truth = target.values[target.rows(test)]
    examples = truth.shape[1]
    for seed in SEEDS:
        order = np.random.default_rng([seed, 37]).permutation(len(train))
        names = [train[position] for position in order[:own_rows]]
        rows = target.values[target.rows(names)]
        same_task = numbers_of_same_tasks(prior.tasks, names)
        shuffled = np.random.default_rng([seed, 41]).permuted(prior.values, axis=1)
        with_prior = GaussianWithPrior().fit(rows, prior.values, same_task)
        methods = {
            "own": Gaussian().fit(rows),
            "prior": with_prior,
            "shuffled": GaussianWithPrior().fit(rows, shuffled, same_task),
        }
        index = random_probes(examples, probes, seed)
        unprobed = np.setdiff1d(np.arange(examples), index)
        weights.append(with_prior.weight(len(index)))
        for name, method in methods.items():
            residuals = (method.predict(index, truth[:, index]) - truth)[:, unprobed]
            errors.setdefault(name, []).append(np.square(residuals).mean(axis=1))
    means = {name: np.mean(by_seed, axis=0) for name, by_seed in errors.items()}
    return means, float(np.mean(weights))


# ---- printing


def print_tables(folder: Path) -> None:
    """Prints the tables of a folder in Markdown."""
    if (folder / "rank.parquet").exists():
        print_rank(pq.read_table(folder / "rank.parquet").to_pandas())
    if (folder / "prior.parquet").exists():
        print()
        print_prior(pq.read_table(folder / "prior.parquet").to_pandas())


STATISTICS = {
    "base_loss": "upstream loss of the base model, nats",
    "mean": "mean forgetting, nats",
    "left_out_r2_1": "R² of a left-out row, 1 component",
    "left_out_r2_3": "3 components",
    "left_out_r2_5": "5 components",
    "effective_rank": "effective rank",
    "components": "components above shuffled rows",
}


def print_rank(table: pd.DataFrame) -> None:
    """One line per statistic, one column per model, and the difference of the largest."""
    models = list(dict.fromkeys(table.model))
    headings = []
    for model in models:
        parameters = table[table.model == model].parameters.iloc[0]
        headings.append(f"{model} ({parameters / 1e6:.2f}M)")
    print_head(f"{table.tasks.iloc[0]} tasks", *headings, "largest minus smallest")
    for statistic, label in STATISTICS.items():
        lines = table[table.statistic == statistic].set_index("model")
        if lines.empty:
            continue
        cells = []
        for model in models:
            line = lines.loc[model]
            if statistic == "base_loss":
                cells.append(f"{line.value:.3f}")
            elif statistic == "components":
                cells.append(f"{line.value:.0f}")
            else:
                cells.append(with_interval(line.value, line.low, line.high))
        last = lines.loc[models[-1]]
        effect = "-"
        if pd.notna(last.get("low")):
            is_ratio = statistic == "effective_rank"
            effect = ("times " if is_ratio else "") + with_interval(
                last.difference,
                last.difference_low,
                last.difference_high,
                sign="" if is_ratio else "+",
            )
        print_line(label, *cells, effect)


def print_prior(table: pd.DataFrame) -> None:
    """One line per pair, number of own rows and number of probes."""
    print_head(
        "Source, target", "own rows", "probes", "own", "prior", "shuffled", "better on", "weight"
    )
    keys = ["source", "target", "own_rows", "probes"]
    for key, lines in table.groupby(keys, sort=False):
        source, target, own_rows, probes = key
        by_method = lines.set_index("method")
        cells = []
        for method in ("own", "prior", "shuffled"):
            line = by_method.loc[method]
            cells.append(with_interval(line.rmse, line.low, line.high))
        prior = by_method.loc["prior"]
        print_line(
            f"{source}, {target}",
            str(own_rows),
            str(probes),
            *cells,
            f"{prior.tasks_lower} of {prior.tasks}",
            f"{prior.weight:.2f}",
        )


def with_interval(value: float, low: float, high: float, sign: str = "") -> str:
    """A value with its 95 percent interval, as the tables show it."""
    digits = 1 if max(abs(value), abs(low), abs(high)) >= 2 else 3
    return f"{value:{sign}.{digits}f} [{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


if __name__ == "__main__":
    main(sys.argv[1:])
