"""How well unseen tasks are predicted, with intervals over tasks (paper, section 4)."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lethe.completion import make
from lethe.completion.association import Association
from lethe.completion.gaussian import Gaussian
from lethe.completion.probes import choose_probes, half_of
from lethe.completion.scores import METRICS, score_rows
from lethe.completion.splits import Split, make_splits
from lethe.completion.threshold import best_threshold, tuned_threshold
from lethe.config.task_table import Task
from lethe.errors import LetheError
from lethe.matrix.forgetting_matrix import Matrix
from lethe.statistics import bootstrap_interval

LEVELS = (0.5, 0.8, 0.9, 0.95)
COVERAGE_METRICS = tuple(f"coverage_{100 * level:.0f}" for level in LEVELS)
WIDTH_METRICS = tuple(f"width_{100 * level:.0f}" for level in LEVELS)


@dataclass(frozen=True, kw_only=True)
class _Protocol:
    probes: Sequence[int]
    seeds: Sequence[int]
    threshold: float
    choices: Sequence[str]
    domains: Sequence[str] | None

    def designs(self) -> list[str]:
        """Values of the column `probes`."""
        halves = [f"{choice}_half" for choice in self.choices if choice != "random"]
        if not halves:
            return ["random"]
        return ["random", "random_half", *halves]


def evaluate(
    matrix: Matrix,
    tasks: Mapping[str, Task],
    methods: Sequence[str],
    probes: Sequence[int],
    seeds: Sequence[int],
    threshold: float,
    options: Mapping[str, dict] | None = None,
    *,
    associations: Mapping[str, np.ndarray] | None = None,
    in_domain_only: Collection[str] = (),
    probe_choice: Sequence[str] = ("random",),
    domains: Sequence[str] | None = None,
    sibling: np.ndarray | None = None,
) -> list[dict]:
    """Scores every method; the result holds the lines of completion.csv.

    There is one line for each split, method, choice of probes, k, seed and metric: the mean over
    test tasks and unprobed cells. For RMSE it is the root of the mean square, which equals
    pooling all cells if all tasks have equally many. Lines of seed `all` give the mean over seeds
    with a 95 percent bootstrap interval over tasks, and `sd_over_seeds`. Methods with intervals
    have lines `coverage_<level>`, the share of unprobed cells inside, and `width_<level>` in nats.
    F1 of a Z of 0s and 1s uses the threshold of predictions that is best on the training tasks
    (`tuned_threshold`).

    Parameters
    ----------
    associations
        name -> (M, N) in Z's order of tasks and examples. Each gives two more predictors that use
        no probe: `<name>`, and `<name>_and_mean` with the column mean (see `Association`).
    in_domain_only
        Associations that were trained on the training tasks of the table. They are left out of
        all other splits, which may predict those tasks. They give one predictor, `<name>`;
        `Association` says why their column mean is biased.
    probe_choice
        Random probes are always scored. Other choices are scored fairly: chosen in a random half
        of the columns, scored in the other half. Their lines, and those of random probes scored
        the same way, have `_half` at the end of their choice.
    domains
        Domain of each example (N,), for stratified probes.
    sibling
        Rows (M, N) of another model, in Z's order of tasks and examples, NaN where it has none.
        They give one more predictor, `gaussian_sibling`, which gets the sibling's row of each
        test task (`Gaussian.predict`).

    Raises
    ------
    LetheError
        If a number of probes leaves no example to predict, or no cell of a test task is known.
    ValueError
        If a method or choice is unknown, or an association or the sibling has another shape
        than Z.
    """
    examples = matrix.values.shape[1]
    for k in probes:
        if k >= examples:
            raise LetheError(
                f"completion.probes: {k} of {examples} examples leave none to predict; each "
                f"must be below {examples} (value seen, or the default: {list(probes)})"
            )
    associations = associations or {}
    for name, values in associations.items():
        if values.shape != matrix.values.shape:
            raise ValueError(f"{name} has shape {values.shape}, Z has {matrix.values.shape}")
    if sibling is not None and sibling.shape != matrix.values.shape:
        raise ValueError(f"sibling has shape {sibling.shape}, Z has {matrix.values.shape}")
    protocol = _Protocol(
        probes=probes, seeds=seeds, threshold=threshold, choices=probe_choice, domains=domains
    )
    all_splits = make_splits(matrix, tasks)
    records = []
    for split_name in dict.fromkeys(split.name for split in all_splits):
        splits = [split for split in all_splits if split.name == split_name]
        draws = [_Draws(matrix, split, protocol) for split in splits]
        predictors: list[_MethodPredictor | _SiblingPredictor | _AssociationPredictor] = []
        for method in methods:
            predictors.append(_MethodPredictor(method, options or {}))
        if sibling is not None:
            predictors.append(_SiblingPredictor(sibling))
        for name, values in associations.items():
            if name not in in_domain_only:
                predictors.append(_AssociationPredictor(name, values, column_mean=False))
                predictors.append(_AssociationPredictor(name, values, column_mean=True))
            elif split_name == "in_domain":
                predictors.append(_AssociationPredictor(name, values, column_mean=False))
        for predictor in predictors:
            fitted = [predictor.fit(matrix.values[split.train], split) for split in splits]
            for design in protocol.designs():
                for k in probes:
                    scores = _scores(draws, fitted, design=design, k=k, protocol=protocol)
                    head = {
                        "split": split_name,
                        "method": predictor.name,
                        "k": k,
                        "probes": design,
                    }
                    records += _summarise(scores, seeds, head)
    return records


def _is_binary(values: np.ndarray) -> bool:
    return bool(np.isin(values[np.isfinite(values)], (0, 1)).all())


class _FittedMethod:
    """A method fitted on the training rows of a split."""

    def __init__(self, name: str, options: Mapping[str, dict], train: np.ndarray):
        self._name = name
        self._options = dict(options)
        self._train = train
        self._completer = self._make().fit(train)
        self._cuts: dict[int, float] = {}
        self.has_intervals = self._completer.has_intervals

    def _make(self):
        return make(self._name, self._options)

    def called_above(self, probes: int) -> float | None:
        """The threshold of predictions for F1; None for a Z in nats, where the truth's is used."""
        if not _is_binary(self._train):
            return None
        if probes not in self._cuts:
            self._cuts[probes] = tuned_threshold(self._make, self._train, probes)
        return self._cuts[probes]

    def predict(self, rows: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Predictions (R, N) of rows of Z by their numbers."""
        return self._completer.predict(index, values)

    def interval(
        self, rows: np.ndarray, index: np.ndarray, values: np.ndarray, level: float
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._completer.predict_interval(index, values, level)


@dataclass(frozen=True)
class _MethodPredictor:
    name: str
    options: Mapping[str, dict]

    def fit(self, train: np.ndarray, split: Split) -> _FittedMethod:
        return _FittedMethod(self.name, self.options, train)


class _FittedSibling:
    """The Gaussian method with the rows of another model, fitted on a split's training rows."""

    has_intervals = True

    def __init__(self, train: np.ndarray, train_sibling: np.ndarray, sibling: np.ndarray):
        self._sibling = sibling
        self._completer = Gaussian().fit(train, other=train_sibling)
        self._cut = _FittedMethod("gaussian", {}, train) if _is_binary(train) else None

    def called_above(self, probes: int) -> float | None:
        """As for the Gaussian method without a sibling."""
        return self._cut.called_above(probes) if self._cut else None

    def predict(self, rows: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Predictions (R, N) of rows of Z by their numbers."""
        return self._completer.predict(index, values, other=self._sibling[rows])

    def interval(
        self, rows: np.ndarray, index: np.ndarray, values: np.ndarray, level: float
    ) -> tuple[np.ndarray, np.ndarray]:
        return self._completer.predict_interval(index, values, level, other=self._sibling[rows])


@dataclass(frozen=True)
class _SiblingPredictor:
    sibling: np.ndarray
    name: str = "gaussian_sibling"

    def fit(self, train: np.ndarray, split: Split) -> _FittedSibling:
        return _FittedSibling(train, train_sibling=self.sibling[split.train], sibling=self.sibling)


class _FittedAssociation:
    """An association with its line fitted on the training rows of a split."""

    has_intervals = False

    def __init__(
        self, train: np.ndarray, train_associations: np.ndarray, associations, column_mean: bool
    ):
        self._associations = associations
        self._line = Association(column_mean).fit(train, train_associations)
        self._cut = None
        if _is_binary(train):
            observed = np.isfinite(train)
            predicted = self._line.predict(train_associations)
            self._cut = best_threshold(train[observed] > 0.5, predicted[observed])

    def called_above(self, probes: int) -> float | None:
        """As for a method; it does not depend on the probes."""
        return self._cut

    def predict(self, rows: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        return self._line.predict(self._associations[rows])


class _AssociationPredictor:
    def __init__(self, name: str, associations: np.ndarray, column_mean: bool):
        self.name = f"{name}_and_mean" if column_mean else name
        self._associations = associations
        self._column_mean = column_mean

    def fit(self, train: np.ndarray, split: Split) -> _FittedAssociation:
        return _FittedAssociation(
            train,
            train_associations=self._associations[split.train],
            associations=self._associations,
            column_mean=self._column_mean,
        )


@dataclass(frozen=True)
class _Draw:
    """One draw of probes: row numbers (R,), probe index (k,), mask (N,) of columns to score."""

    rows: np.ndarray
    index: np.ndarray
    scored: np.ndarray


class _Draws:
    """Probes of a split's test rows, drawn once for all methods.

    Rows that know the same cells share their probes, as in the paper, and are predicted at once.
    """

    def __init__(self, matrix: Matrix, split: Split, protocol: _Protocol):
        self.values = matrix.values.astype(np.float64)
        self._train = matrix.values[split.train]
        self._protocol = protocol
        observed = np.isfinite(self.values[split.test])
        if not observed.any(axis=1).all():
            task = matrix.tasks[split.test[np.argmin(observed.any(axis=1))]]
            raise LetheError(
                f"task {task!r}: no cell of its row of Z is known, so there is nothing to probe "
                "or to predict; measure it, or leave it out of the task table"
            )
        patterns, group = np.unique(observed, axis=0, return_inverse=True)
        self._groups = []
        for number, pattern in enumerate(patterns):
            self._groups.append((split.test[group.ravel() == number], pattern))
        self._chosen: dict[tuple, np.ndarray] = {}

    def draw(self, design: str, k: int, seed: int) -> Iterator[_Draw]:
        """One draw for each group of rows."""
        in_halves = design.endswith("_half")
        for number, (rows, observed) in enumerate(self._groups):
            half = half_of(len(observed), seed) if in_halves else np.ones_like(observed)
            allowed = observed & half
            # At least one cell must stay hidden, to be predicted.
            count = min(k, int(allowed.sum()) - (not in_halves))
            key = (number, design, k, seed)
            if key not in self._chosen:
                self._chosen[key] = choose_probes(
                    self._train,
                    count,
                    design.removesuffix("_half"),
                    seed=seed,
                    domains=self._protocol.domains,
                    allowed=allowed,
                )
            index = self._chosen[key]
            scored = observed & ~half if in_halves else observed.copy()
            scored[index] = False
            yield _Draw(rows=rows, index=index, scored=scored)


def _scores(
    draws: Sequence[_Draws],
    fitted: Sequence[_FittedMethod | _FittedSibling | _FittedAssociation],
    design: str,
    k: int,
    protocol: _Protocol,
) -> dict[str, np.ndarray]:
    """Metric -> (seeds, test tasks)."""
    by_seed = []
    for seed in protocol.seeds:
        lines = []
        for draws_of_split, predictor in zip(draws, fitted, strict=True):
            for draw in draws_of_split.draw(design, k, seed):
                lines.append(
                    _score(draws_of_split.values, predictor, draw, threshold=protocol.threshold)
                )
        by_seed.append(np.concatenate(lines))
    metrics = METRICS
    if fitted[0].has_intervals:
        metrics = METRICS + COVERAGE_METRICS + WIDTH_METRICS
    by_metric = np.moveaxis(np.array(by_seed), 2, 0)
    return dict(zip(metrics, by_metric, strict=True))


def _score(values: np.ndarray, predictor, draw: _Draw, threshold: float) -> np.ndarray:
    """Scores (R, metrics) of one draw of probes."""
    truth = values[np.ix_(draw.rows, draw.scored)]
    probed = values[np.ix_(draw.rows, draw.index)]
    predicted = predictor.predict(draw.rows, draw.index, probed)[:, draw.scored]
    called_above = predictor.called_above(len(draw.index))
    scores = score_rows(truth, predicted, threshold=threshold, called_above=called_above)
    if not predictor.has_intervals:
        return scores
    coverage = []
    widths = []
    for level in LEVELS:
        low, high = predictor.interval(draw.rows, draw.index, probed, level)
        low = low[:, draw.scored]
        high = high[:, draw.scored]
        coverage.append(((low <= truth) & (truth <= high)).mean(axis=1))
        widths.append((high - low).mean(axis=1))
    return np.hstack([scores, np.transpose(coverage + widths)])


def _summarise(scores: Mapping[str, np.ndarray], seeds: Sequence[int], head: dict) -> list[dict]:
    lines = []
    for metric, values in scores.items():
        by_seed = _mean(metric, values)
        low, high = _interval(metric, _mean(metric, values.T))
        for seed, value in zip(seeds, by_seed.tolist(), strict=True):
            lines.append({**head, "seed": str(seed), "metric": metric, "value": value})
        lines.append(
            {
                **head,
                "seed": "all",
                "metric": metric,
                "value": float(by_seed.mean()),
                "low": low,
                "high": high,
                "sd_over_seeds": float(by_seed.std(ddof=1)) if len(seeds) > 1 else None,
            }
        )
    return lines


def _mean(metric: str, values: np.ndarray) -> np.ndarray:
    """Means (n,) of the lines of values (n, m) without NaN; NaN for a line of NaN."""
    observed = np.isfinite(values)
    filled = np.where(observed, np.square(values) if metric == "rmse" else values, 0.0)
    counts = np.maximum(observed.sum(axis=1), 1)
    means = np.where(observed.any(axis=1), filled.sum(axis=1) / counts, np.nan)
    return np.sqrt(means) if metric == "rmse" else means


def _interval(metric: str, values: np.ndarray) -> tuple[float, float]:
    """Bootstrap interval over tasks (n,) of a metric's mean."""
    if metric != "rmse":
        return bootstrap_interval(values)
    low, high = bootstrap_interval(np.square(values))
    return float(np.sqrt(low)), float(np.sqrt(high))


def predict_rows(
    matrix: Matrix,
    tasks: Mapping[str, Task],
    method: str,
    probes: int,
    seed: int,
    allowed: np.ndarray,
    options: Mapping[str, dict] | None = None,
    choice: str = "random",
    domains: Sequence[str] | None = None,
) -> Matrix:
    """Predicts the forgetting of all examples for each task but train, from a few of its cells.

    Only cells in `allowed` (N,) columns of the predicted tasks are used. If held-out examples are
    not allowed, their forgetting by these tasks stays unseen. Training tasks are known
    completely, held-out examples included, because methods are fitted and tuned on all their
    cells. A probed cell keeps its measured value. An example without any measured cell in the
    training tasks, such as one that the base model answers wrong, stays NaN: it is never
    replayed.
    """
    train = matrix.values[make_splits(matrix, tasks)[0].train]
    unmeasured = ~np.isfinite(train).any(axis=0)
    names = [name for name, task in tasks.items() if task.split != "train"]
    completer = make(method, dict(options or {})).fit(train)
    predictions = []
    for row in matrix.rows(names):
        truth = matrix.values[row]
        can_be_probed = np.asarray(allowed) & np.isfinite(truth)
        index = choose_probes(
            train, probes, choice, seed=seed, domains=domains, allowed=can_be_probed
        )
        predicted = completer.predict(index, truth[index])
        predicted[unmeasured] = np.nan
        predicted[index] = truth[index]
        predictions.append(predicted)
    values = np.array(predictions, dtype=np.float32)
    return Matrix(values=values, tasks=names, example_ids=matrix.example_ids)
