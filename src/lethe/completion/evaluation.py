"""How well unseen tasks are predicted, with intervals over tasks (paper, section 4)."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from lethe.completion import BINARY, make
from lethe.completion.association import Association
from lethe.completion.domain_means import MeanPredictor, domain_masks
from lethe.completion.embedding_kernel import EmbeddingGaussian
from lethe.completion.foldin import sample_columns
from lethe.completion.gaussian import Gaussian
from lethe.completion.logistic_stack import LogisticStack
from lethe.completion.model_prior import GaussianWithPrior, numbers_of_same_tasks, without_tasks
from lethe.completion.probes import BINARY_CHOICES, CHOICES_BY_ROWS, choose_probes, half_of
from lethe.completion.scores import METRICS, Truth
from lethe.completion.splits import Split, make_splits
from lethe.completion.threshold import (
    best_threshold,
    expected_f1_thresholds,
    tuned_threshold,
)
from lethe.config.task_table import Task
from lethe.errors import LetheError
from lethe.matrix.forgetting_matrix import Matrix
from lethe.statistics import bootstrap_interval

log = logging.getLogger(__name__)

# Cells that are scored per draw of probes, over the test tasks of all splits. A Z with more is
# scored on a random part of its examples, of this many at least.
SCORED_CELLS = 2_500_000
LEAST_COLUMNS = 2000

LEVELS = (0.5, 0.8, 0.9, 0.95)
COVERAGE_METRICS = tuple(f"coverage_{100 * level:.0f}" for level in LEVELS)
DEVIATION_METRICS = tuple(f"coverage_{100 * level:.0f}_deviation" for level in LEVELS)
WIDTH_METRICS = tuple(f"width_{100 * level:.0f}" for level in LEVELS)
# Level of the intervals of means.
MEAN_LEVEL = 0.9
TASK_MEAN = ("task_mean_error", "task_mean_coverage_90", "task_mean_width_90")
DOMAIN_MEAN = ("domain_mean_error", "domain_mean_coverage_90", "domain_mean_width_90")

# (method, choice of probes, k) -> metric -> scores (seeds, test tasks).
_Scores = dict[tuple[str, str, int], dict[str, np.ndarray]]


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
    prior: Matrix | None = None,
    embeddings: np.ndarray | None = None,
) -> list[dict]:
    """Scores every method; the result holds the lines of completion.csv.

    There is one line for each split, method, choice of probes, k, seed and metric: the mean over
    test tasks and unprobed cells. For RMSE it is the root of the mean square, which equals
    pooling all cells if all tasks have equally many. Lines of seed `all` give the mean over seeds
    with a 95 percent bootstrap interval over tasks, and `sd_over_seeds`. A seed without a value is
    left out. The interval of RMSE is that of the root of the mean square over seeds, which is a
    little above the mean of RMSE if seeds differ. Lines of the split `out_of_domain:<group>` are
    those of a single left-out group, for the seed `all` only.

    Methods with intervals have lines `coverage_<level>`, the share of unprobed cells inside;
    `coverage_<level>_deviation`, the mean over tasks of the distance between a task's own
    coverage and the level; and `width_<level>` in nats. `gaussian` and `gaussian_sibling` have
    lines of the mean forgetting of a task, and of its domains, over the unprobed examples:
    `task_mean_error` (mean absolute error in nats), `task_mean_coverage_90` and
    `task_mean_width_90` of its interval, and the same for `domain_mean`.
    F1 of a Z of 0s and 1s uses the threshold of predictions that is best on the training tasks
    (`tuned_threshold`). `logistic_stack`, whose probabilities are calibrated on left-out tasks,
    uses a threshold for each task (`expected_f1_thresholds`). A Z of more than `SCORED_CELLS`
    test cells is fitted and scored on a random part of its examples, and a warning is logged.

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
    prior
        Z of another model, with the examples in the order of Z. It gives one more predictor,
        `gaussian_prior`, which gets its rows of all tasks but the test tasks
        (`GaussianWithPrior`). In a split whose training tasks the other model did not learn, it
        is `gaussian`.
    embeddings
        Vectors (N, D) of the examples, in Z's order. They give one more predictor,
        `gaussian_embeddings` (`EmbeddingGaussian`).

    Raises
    ------
    LetheError
        If a number of probes leaves no example to predict, no cell of a test task is known, or a
        logistic method or choice is given for a Z in nats.
    ValueError
        If a method or choice is unknown, an association, the sibling or the embeddings have another
        shape than Z, or the prior has other examples.
    """
    _check_probes(probes, matrix.values.shape[1])
    _refuse_binary_methods_of_nats(matrix, methods, probe_choice)
    inputs = _Inputs(
        matrix=matrix,
        associations=dict(associations or {}),
        in_domain_only=in_domain_only,
        domains=domains,
        sibling=sibling,
        prior=prior,
        embeddings=embeddings,
    )
    inputs.check_shapes()
    splits = make_splits(matrix, tasks)
    columns = _scored_columns(matrix.values.shape[1], splits, probes)
    if columns is not None:
        inputs = inputs.at(columns)
    protocol = _Protocol(
        probes=probes,
        seeds=seeds,
        threshold=threshold,
        choices=probe_choice,
        domains=inputs.domains,
    )
    scores = []
    for split in splits:
        predictors = inputs.predictors(split, methods, options or {})
        scores.append(_score_split(inputs.matrix, split, protocol, predictors))
    return _records(splits, scores, seeds)


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """Z and all that predictors may read beside it; `evaluate` describes the fields."""

    matrix: Matrix
    associations: Mapping[str, np.ndarray]
    in_domain_only: Collection[str]
    domains: Sequence[str] | None
    sibling: np.ndarray | None
    prior: Matrix | None
    embeddings: np.ndarray | None

    def check_shapes(self) -> None:
        """Raises ValueError if something does not fit Z."""
        z = self.matrix
        for name, values in self.associations.items():
            if values.shape != z.values.shape:
                raise ValueError(f"{name} has shape {values.shape}, Z has {z.values.shape}")
        if self.sibling is not None and self.sibling.shape != z.values.shape:
            raise ValueError(f"sibling has shape {self.sibling.shape}, Z has {z.values.shape}")
        if self.prior is not None and self.prior.example_ids != z.example_ids:
            raise ValueError("the examples of the prior are not those of Z, in the same order")
        examples = z.values.shape[1]
        if self.embeddings is not None and len(self.embeddings) != examples:
            raise ValueError(f"embeddings of {len(self.embeddings)} examples, Z has {examples}")

    def at(self, columns: np.ndarray) -> "_Inputs":
        """The same of the examples with these numbers only."""

        def of_matrix(matrix: Matrix) -> Matrix:
            names = [matrix.example_ids[column] for column in columns]
            return Matrix(values=matrix.values[:, columns], tasks=matrix.tasks, example_ids=names)

        domains = self.domains
        return replace(
            self,
            matrix=of_matrix(self.matrix),
            associations={name: z[:, columns] for name, z in self.associations.items()},
            domains=None if domains is None else [domains[column] for column in columns],
            sibling=None if self.sibling is None else self.sibling[:, columns],
            prior=None if self.prior is None else of_matrix(self.prior),
            embeddings=None if self.embeddings is None else self.embeddings[columns],
        )

    def predictors(
        self, split: Split, methods: Sequence[str], options: Mapping[str, dict]
    ) -> "list[_Predictor]":
        """The predictors that are scored in a split, in the order of the table."""
        predictors: list[_Predictor] = []
        for method in methods:
            predictors.append(_MethodPredictor(method, options, self.domains))
        if self.sibling is not None:
            predictors.append(_SiblingPredictor(self.sibling, self.domains))
        if self.prior is not None:
            predictors.append(_PriorPredictor(self.prior, self.matrix.tasks))
        if self.embeddings is not None:
            predictors.append(_EmbeddingPredictor(self.embeddings))
        for name, values in self.associations.items():
            if name not in self.in_domain_only:
                predictors.append(_AssociationPredictor(name, values, column_mean=False))
                predictors.append(_AssociationPredictor(name, values, column_mean=True))
            elif split.name == "in_domain":
                predictors.append(_AssociationPredictor(name, values, column_mean=False))
        return predictors


def _records(
    splits: Sequence[Split], scores: Sequence[_Scores], seeds: Sequence[int]
) -> list[dict]:
    """Lines of completion.csv from the scores of each split."""
    by_name: dict[str, list[_Scores]] = {}
    by_group: dict[str, _Scores] = {}
    for split, of_split in zip(splits, scores, strict=True):
        by_name.setdefault(split.name, []).append(of_split)
        if split.group is not None:
            by_group[f"{split.name}:{split.group}"] = of_split
    records = []
    for split_name, scores_of_splits in by_name.items():
        for key in scores_of_splits[0]:
            method, design, k = key
            head = {"split": split_name, "method": method, "k": k, "probes": design}
            parts = [of_split[key] for of_split in scores_of_splits]
            pooled = {}
            for metric in parts[0]:
                pooled[metric] = np.concatenate([part[metric] for part in parts], axis=1)
            records += _summarise(pooled, seeds, head)
    for split_name, of_group in by_group.items():
        for (method, design, k), by_metric in of_group.items():
            head = {"split": split_name, "method": method, "k": k, "probes": design}
            for line in _summarise(by_metric, seeds, head):
                # One line per group and metric; those of every seed would be most of the table.
                if line["seed"] == "all":
                    records.append(line)
    return records


def _check_probes(probes: Sequence[int], examples: int) -> None:
    for k in probes:
        if k >= examples:
            raise LetheError(
                f"completion.probes: {k} of {examples} examples leave none to predict; each "
                f"must be below {examples} (value seen, or the default: {list(probes)})"
            )


def _scored_columns(
    examples: int, splits: Sequence[Split], probes: Sequence[int]
) -> np.ndarray | None:
    """Numbers of the random columns that stand for a large Z; None if all are scored.

    Time and memory then grow with the tasks only. The columns are drawn once, so that methods,
    probes and splits are compared on the same ones.
    """
    rows = sum(len(split.test) for split in splits)
    count = max(SCORED_CELLS // max(rows, 1), LEAST_COLUMNS, 2 * max(probes, default=0))
    if count >= examples:
        return None
    log.warning(
        "Z has %d examples: completion is fitted and scored on %d of them, drawn at random; its "
        "scores are estimates for all",
        examples,
        count,
    )
    return np.sort(np.random.default_rng(61).choice(examples, count, replace=False))


def _refuse_binary_methods_of_nats(
    matrix: Matrix, methods: Sequence[str], probe_choice: Sequence[str]
) -> None:
    selected = {"completion.methods": [name for name in methods if name in BINARY]}
    selected["completion.probe_choice"] = [name for name in probe_choice if name in BINARY_CHOICES]
    for key, names in selected.items():
        if not names:
            continue
        lowest = np.nanmin(matrix.values, initial=0)
        highest = np.nanmax(matrix.values, initial=1)
        if lowest < 0 or highest > 1:
            raise LetheError(
                f"{key}: {', '.join(names)} needs a Z of 0 to 1, as of exact match, but this Z "
                f"holds {lowest:.4g} to {highest:.4g}; for forgetting in nats name others, such "
                "as gaussian or a_optimal"
            )


def _is_binary(values: np.ndarray) -> bool:
    return bool(np.isin(values[np.isfinite(values)], (0, 1)).all())


class _FittedMethod:
    """A method fitted on the training rows of a split."""

    def __init__(
        self,
        name: str,
        options: Mapping[str, dict],
        train: np.ndarray,
        domains: Sequence[str] | None,
    ):
        self._name = name
        self._options = dict(options)
        self._train = train
        self._completer = self._make().fit(train)
        self._cuts: dict[int, float] = {}
        self.has_intervals = self._completer.has_intervals
        self._means: _MeanScorer | None = None
        self.interval_metrics: tuple[str, ...] = ()
        if self.has_intervals:
            self.interval_metrics = COVERAGE_METRICS + DEVIATION_METRICS + WIDTH_METRICS
        if self.has_intervals and isinstance(self._completer, Gaussian):
            self._means = _MeanScorer(self._completer, domains)
            self.interval_metrics += self._means.metrics

    def _make(self):
        return make(self._name, self._options)

    def called_above(self, predicted: np.ndarray, probes: int) -> float | np.ndarray | None:
        """The threshold for F1, or thresholds (R, 1), of predictions (R, n) at the scored cells.

        None for a Z in nats, where the truth's is used.
        """
        if not _is_binary(self._train):
            return None
        if isinstance(self._completer, LogisticStack):
            return expected_f1_thresholds(predicted)
        if probes not in self._cuts:
            self._cuts[probes] = tuned_threshold(self._make, self._train, probes)
        return self._cuts[probes]

    def predict(self, rows: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Predictions (R, N) of rows of Z by their numbers."""
        return self._completer.predict(index, values)

    def intervals(
        self,
        rows: np.ndarray,
        index: np.ndarray,
        values: np.ndarray,
        levels: Sequence[float],
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ends (R, N) of the intervals of each level."""
        return self._completer.predict_intervals(index, values, levels)

    def score_means(self, truth: np.ndarray, values: np.ndarray, draw: "_Draw") -> np.ndarray:
        """Scores (R, metrics) of means over the scored columns, from probe values (R, k).

        `truth` (R, n) holds the measured cells of these columns.
        """
        if self._means is None:
            return np.empty((len(truth), 0))
        return self._means.score(truth, values, draw)


class _MeanScorer:
    """Scores the predicted mean of a task, and those of its domains if they are known."""

    def __init__(self, method: Gaussian, domains: Sequence[str] | None):
        everything = np.ones((1, method.examples_), dtype=bool)
        members = everything
        self.metrics = TASK_MEAN
        if domains is not None:
            members = np.vstack([everything, domain_masks(domains)[1]])
            self.metrics = TASK_MEAN + DOMAIN_MEAN
        self._predictor = MeanPredictor(method, members)

    def score(
        self,
        truth: np.ndarray,
        values: np.ndarray,
        draw: "_Draw",
        other: np.ndarray | None = None,
    ) -> np.ndarray:
        """Scores (R, metrics) over the scored columns, from probe values (R, k).

        `truth` (R, n) holds the measured cells of these columns, `other` (R, N) the tasks' rows
        on another model.
        """
        members = self._predictor.members[:, draw.scored]
        counts = np.maximum(members.sum(axis=1), 1)
        means = truth @ members.T.astype(float) / counts
        predicted = self._predictor.predict(
            draw.index, values, levels=[MEAN_LEVEL], among=draw.scored, other=other
        )
        low = predicted.low[0]
        high = predicted.high[0]
        inside = np.where(np.isfinite(low), (low <= means) & (means <= high), np.nan)
        by_set = (np.abs(predicted.values - means), inside, high - low)
        scores = [of_sets[:, 0] for of_sets in by_set]
        if len(members) > 1:
            measured = members.any(axis=1)
            measured[0] = False
            scores += [of_sets[:, measured].mean(axis=1) for of_sets in by_set]
        return np.stack(scores, axis=1)


@dataclass(frozen=True)
class _MethodPredictor:
    name: str
    options: Mapping[str, dict]
    domains: Sequence[str] | None

    def fit(self, train: np.ndarray, split: Split) -> _FittedMethod:
        return _FittedMethod(self.name, self.options, train, self.domains)


class _CutOfGaussian:
    """Calls cells forgotten above the threshold of the Gaussian method on the same rows."""

    def __init__(self, train: np.ndarray):
        self._cut = _FittedMethod("gaussian", {}, train, None) if _is_binary(train) else None

    def called_above(self, predicted: np.ndarray, probes: int) -> float | np.ndarray | None:
        """As for the Gaussian method itself."""
        return self._cut.called_above(predicted, probes) if self._cut else None


class _FittedSibling(_CutOfGaussian):
    """The Gaussian method with the rows of another model, fitted on a split's training rows."""

    has_intervals = True

    def __init__(
        self,
        train: np.ndarray,
        train_sibling: np.ndarray,
        sibling: np.ndarray,
        domains: Sequence[str] | None,
    ):
        super().__init__(train)
        self._sibling = sibling
        self._completer = Gaussian().fit(train, other=train_sibling)
        self._means = _MeanScorer(self._completer, domains)
        self.interval_metrics = COVERAGE_METRICS + DEVIATION_METRICS + WIDTH_METRICS
        self.interval_metrics += self._means.metrics

    def predict(self, rows: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Predictions (R, N) of rows of Z by their numbers."""
        return self._completer.predict(index, values, other=self._sibling[rows])

    def intervals(
        self,
        rows: np.ndarray,
        index: np.ndarray,
        values: np.ndarray,
        levels: Sequence[float],
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ends (R, N) of the intervals of each level."""
        other = self._sibling[rows]
        return self._completer.predict_intervals(index, values, levels, other=other)

    def score_means(self, truth: np.ndarray, values: np.ndarray, draw: "_Draw") -> np.ndarray:
        """Scores (R, metrics) of means, with the sibling's rows of the tasks."""
        return self._means.score(truth, values, draw, other=self._sibling[draw.rows])


@dataclass(frozen=True)
class _SiblingPredictor:
    sibling: np.ndarray
    domains: Sequence[str] | None = None
    name: str = "gaussian_sibling"

    def fit(self, train: np.ndarray, split: Split) -> _FittedSibling:
        return _FittedSibling(
            train,
            train_sibling=self.sibling[split.train],
            sibling=self.sibling,
            domains=self.domains,
        )


class _FittedPrior(_CutOfGaussian):
    """The Gaussian method with a prior, fitted on the training rows of a split."""

    has_intervals = False
    interval_metrics = ()

    def __init__(self, train: np.ndarray, completer: GaussianWithPrior | Gaussian):
        super().__init__(train)
        self._completer = completer

    def predict(self, rows: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Predictions (R, N) of rows of Z by their numbers."""
        return self._completer.predict(index, values)


class _FittedEmbeddings:
    """The Gaussian method with a kernel of the examples' embeddings, fitted on training rows."""

    has_intervals = False
    interval_metrics = ()

    def __init__(self, train: np.ndarray, embeddings: np.ndarray):
        self._train = train
        self._embeddings = embeddings
        self._completer = EmbeddingGaussian(embeddings).fit(train)
        self._cuts: dict[int, float] = {}

    def called_above(self, predicted: np.ndarray, probes: int) -> float | None:
        """As for a method."""
        if not _is_binary(self._train):
            return None
        if probes not in self._cuts:
            # Thresholds are tuned on a sample of the columns, and this is the same sample.
            sample = sample_columns(self._embeddings.T).T
            method = partial(EmbeddingGaussian, sample)
            self._cuts[probes] = tuned_threshold(method, self._train, probes)
        return self._cuts[probes]

    def predict(self, rows: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Predictions (R, N) of rows of Z by their numbers."""
        return self._completer.predict(index, values)


@dataclass(frozen=True)
class _PriorPredictor:
    prior: Matrix
    tasks: Sequence[str]
    name: str = "gaussian_prior"

    def fit(self, train: np.ndarray, split: Split) -> _FittedPrior:
        prior = without_tasks(self.prior, [self.tasks[row] for row in split.test])
        same_task = numbers_of_same_tasks(prior.tasks, [self.tasks[row] for row in split.train])
        if all(number is None for number in same_task):
            return _FittedPrior(train, Gaussian().fit(train))
        completer = GaussianWithPrior().fit(train, prior.values, same_task)
        return _FittedPrior(train, completer)


@dataclass(frozen=True)
class _EmbeddingPredictor:
    embeddings: np.ndarray
    name: str = "gaussian_embeddings"

    def fit(self, train: np.ndarray, split: Split) -> _FittedEmbeddings:
        return _FittedEmbeddings(train, self.embeddings)


class _FittedAssociation:
    """An association with its line fitted on the training rows of a split."""

    has_intervals = False
    interval_metrics = ()

    def __init__(
        self, train: np.ndarray, train_associations: np.ndarray, associations, column_mean: bool
    ):
        self._associations = associations
        self._line = Association(column_mean).fit(train, train_associations)
        self._cut = None
        if _is_binary(train):
            truths = []
            predictions = []
            for row, predicted in zip(train, self._line.predict(train_associations), strict=True):
                observed = np.isfinite(row)
                truths.append(row[observed] > 0.5)
                predictions.append(predicted[observed])
            self._cut = best_threshold(truths, predictions)

    def called_above(self, predicted: np.ndarray, probes: int) -> float | None:
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


_Predictor = (
    _MethodPredictor
    | _SiblingPredictor
    | _PriorPredictor
    | _EmbeddingPredictor
    | _AssociationPredictor
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
        self._tasks = matrix.tasks
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
            if design.removesuffix("_half") in CHOICES_BY_ROWS:
                # They never choose an example that no training task knows.
                allowed &= np.isfinite(self._train).any(axis=0)
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
            if not scored.any():
                raise LetheError(
                    f"completion.probe_choice: task {self._tasks[rows[0]]!r} has "
                    f"{int(observed.sum())} measured examples, all in the half that probes are "
                    "chosen from; measure more of its row, or use random probes only"
                )
            yield _Draw(rows=rows, index=index, scored=scored)


def _score_split(
    matrix: Matrix,
    split: Split,
    protocol: _Protocol,
    predictors: Sequence[_Predictor],
) -> _Scores:
    """Scores every predictor on the test tasks of one split.

    Fitted predictors are released at the end, so that memory holds those of one split only.
    """
    draws = _Draws(matrix, split, protocol)
    train = matrix.values[split.train]
    fitted = [(predictor.name, predictor.fit(train, split)) for predictor in predictors]
    scores: _Scores = {}
    for name, _ in fitted:
        for design in protocol.designs():
            for k in protocol.probes:
                scores[name, design, k] = {}
    for design in protocol.designs():
        for k in protocol.probes:
            by_seed: dict[str, list[np.ndarray]] = {name: [] for name, _ in fitted}
            for seed in protocol.seeds:
                lines: dict[str, list[np.ndarray]] = {name: [] for name, _ in fitted}
                for draw in draws.draw(design, k, seed):
                    truth = Truth(draws.values[np.ix_(draw.rows, draw.scored)], protocol.threshold)
                    for name, predictor in fitted:
                        lines[name].append(_score(draws.values, truth, predictor, draw))
                for name, parts in lines.items():
                    by_seed[name].append(np.concatenate(parts))
            for name, predictor in fitted:
                metrics = METRICS + predictor.interval_metrics
                by_metric = np.moveaxis(np.array(by_seed[name]), 2, 0)
                scores[name, design, k] = dict(zip(metrics, by_metric, strict=True))
    return scores


def _score(values: np.ndarray, truth: Truth, predictor, draw: _Draw) -> np.ndarray:
    """Scores (R, metrics) of one draw of probes."""
    probed = values[np.ix_(draw.rows, draw.index)]
    predicted = predictor.predict(draw.rows, draw.index, probed)[:, draw.scored]
    scores = truth.score(predicted, predictor.called_above(predicted, len(draw.index)))
    if not predictor.has_intervals:
        return scores
    coverage = []
    widths = []
    for low, high in predictor.intervals(draw.rows, draw.index, probed, LEVELS):
        low = low[:, draw.scored]
        high = high[:, draw.scored]
        coverage.append(((low <= truth.values) & (truth.values <= high)).mean(axis=1))
        widths.append((high - low).mean(axis=1))
    coverage_by_task = np.transpose(coverage)
    return np.hstack(
        [
            scores,
            coverage_by_task,
            np.abs(coverage_by_task - np.array(LEVELS)),
            np.transpose(widths),
            predictor.score_means(truth.values, probed, draw),
        ]
    )


def _summarise(scores: Mapping[str, np.ndarray], seeds: Sequence[int], head: dict) -> list[dict]:
    lines = []
    for metric, values in scores.items():
        by_seed = _mean(metric, values)
        # A seed whose tasks all lack this metric, F1 without a cell that is 1 say, says nothing.
        known = by_seed[np.isfinite(by_seed)]
        low, high = _interval(metric, _mean(metric, values.T))
        for seed, value in zip(seeds, by_seed.tolist(), strict=True):
            lines.append({**head, "seed": str(seed), "metric": metric, "value": value})
        lines.append(
            {
                **head,
                "seed": "all",
                "metric": metric,
                "value": float(known.mean()) if len(known) else float("nan"),
                "low": low,
                "high": high,
                "sd_over_seeds": float(known.std(ddof=1)) if len(known) > 1 else None,
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
