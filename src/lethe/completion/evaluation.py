"""How well unseen tasks are predicted, and how sure of that one can be (paper, section 4)."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from lethe.completion import make
from lethe.completion.association import Association
from lethe.completion.probes import choose_probes, half_of
from lethe.completion.scores import METRICS, metrics
from lethe.completion.splits import Split, splits
from lethe.completion.threshold import best_threshold, tuned_threshold
from lethe.errors import LetheError
from lethe.matrix.forgetting_matrix import Matrix
from lethe.statistics import bootstrap_interval

LEVELS = (0.5, 0.8, 0.9, 0.95)
COVERAGE = tuple(f"{what}_{100 * level:.0f}" for what in ("coverage", "width") for level in LEVELS)


@dataclass(frozen=True)
class _Protocol:
    probes: Sequence[int]
    seeds: Sequence[int]
    threshold: float
    choices: Sequence[str]
    domains: Sequence[str] | None

    def designs(self) -> list[str]:
        """Values of the column `probes`."""
        chosen = [f"{choice}_half" for choice in self.choices if choice != "random"]
        return ["random", *(["random_half"] if chosen else []), *chosen]


def evaluate(
    matrix: Matrix,
    tasks: Mapping[str, tuple[str, str]],
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
) -> list[dict]:
    """Scores every method; lines of completion.csv.

    One line for each split, method, choice of probes, k, seed and metric: the mean over test
    tasks (for RMSE the root of the mean square, which is pooling their cells if all tasks know
    equally many) over unprobed cells. Lines of seed `all` give the mean over seeds with a 95
    percent bootstrap interval over tasks, and `sd_over_seeds` beside each. Methods with intervals
    have lines `coverage_<level>`, the share of unprobed cells inside, and `width_<level>` in nats.
    F1 of a Z of 0s and 1s calls what is predicted above a threshold that training tasks ask for
    (`tuned_threshold`).

    Parameters
    ----------
    associations
        name -> (M, N) in Z's order of tasks and examples. Each is two more predictors that look
        at no probe: `<name>`, and `<name>_and_mean` with the column mean (see `Association`).
    in_domain_only
        Associations that were themselves trained on the training tasks of the table, and so may
        have seen what another split predicts: left out there. They are one predictor, `<name>`:
        see `Association` for why their column mean is not to be trusted.
    probe_choice
        Random probes are always scored. Other choices are scored fairly: chosen in a random half
        of the columns, scored in the other half. Their lines, and those of random probes scored
        the same way, have `_half` at the end of their choice.
    domains
        Domain of each example (N,), for stratified probes.

    Raises
    ------
    LetheError
        If a number of probes leaves no example to predict, or no cell of a test task is known.
    ValueError
        If a method or choice is not known, or an association has another shape than Z.
    """
    examples = matrix.values.shape[1]
    if too_many := [k for k in probes if k >= examples]:
        raise LetheError(
            f"completion.probes: {too_many[0]} of {examples} examples leave none to predict; each "
            f"must be below {examples} (value seen, or the default: {list(probes)})"
        )
    protocol = _Protocol(probes, seeds, threshold, probe_choice, domains)
    records = []
    found = splits(matrix, tasks)
    for name in dict.fromkeys(split.name for split in found):
        chosen = [split for split in found if split.name == name]
        draws = [_Draws(matrix, split, protocol) for split in chosen]
        allowed = {
            key: values
            for key, values in (associations or {}).items()
            if name == "in_domain" or key not in in_domain_only
        }
        for predictor in _predictors(matrix, methods, options or {}, allowed, in_domain_only):
            fitted = [predictor(split) for split in chosen]
            for design in protocol.designs():
                for k in probes:
                    scores = _scores(draws, fitted, design, k, protocol)
                    head = {"split": name, "method": fitted[0].name, "k": k, "probes": design}
                    records += _summary(scores, seeds, head)
    return records


def _binary(values: np.ndarray) -> bool:
    return bool(np.isin(values[np.isfinite(values)], (0, 1)).all())


class _Fitted:
    """A method fitted on the training rows of a split."""

    def __init__(self, name: str, options: Mapping[str, dict], train: np.ndarray):
        self.name, self._train = name, train
        self._make = partial(make, name, dict(options))
        self._completer = self._make().fit(train)
        self.has_intervals = self._completer.has_intervals
        self._cuts: dict[int, float] = {}

    def called_above(self, probes: int) -> float | None:
        """The threshold of predictions for F1; none: that of the truth, which is in nats."""
        if not _binary(self._train):
            return None
        if probes not in self._cuts:
            self._cuts[probes] = tuned_threshold(self._make, self._train, probes)
        return self._cuts[probes]

    def predict(self, rows: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Predictions (R, N) of rows of Z by their numbers."""
        return self._completer.predict(index, values)

    def interval(self, index: np.ndarray, values: np.ndarray, level: float):
        return self._completer.predict_interval(index, values, level)


class _Associated:
    """An association with its line fitted on the training rows of a split."""

    has_intervals = False

    def __init__(self, name: str, mean: bool, train: np.ndarray, associations: np.ndarray, rows):
        self.name, self._associations = name, associations
        self._line = Association(mean).fit(train, associations[rows])
        self._cut = None
        if _binary(train):
            known = np.isfinite(train)
            predicted = self._line.predict(associations[rows])
            self._cut = best_threshold(train[known] > 0.5, predicted[known])

    def called_above(self, probes: int) -> float | None:
        """As of a method; it has no probes to depend on."""
        return self._cut

    def predict(self, rows: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
        return self._line.predict(self._associations[rows])


def _predictors(
    matrix: Matrix,
    methods: Sequence[str],
    options: Mapping[str, dict],
    associations: Mapping[str, np.ndarray],
    trained: Collection[str],
) -> Iterator[Callable[[Split], "_Fitted | _Associated"]]:
    """Functions that fit a predictor to a split."""

    def method(name):
        return lambda split: _Fitted(name, options, matrix.values[split.train])

    def associated(name, values, mean):
        full = f"{name}_and_mean" if mean else name
        return lambda split: _Associated(
            full, mean, matrix.values[split.train], values, split.train
        )

    for name, values in associations.items():
        if values.shape != matrix.values.shape:
            raise ValueError(f"{name} has shape {values.shape}, Z has {matrix.values.shape}")
    yield from (method(name) for name in methods)
    for name, values in associations.items():
        kinds = (False,) if name in trained else (False, True)
        yield from (associated(name, values, mean) for mean in kinds)


class _Draws:
    """Probes of a split's test rows, drawn once for all methods.

    Rows that know the same cells share their probes, as in the paper, and are predicted at once.
    """

    def __init__(self, matrix: Matrix, split: Split, protocol: _Protocol):
        self.values, self.train = matrix.values.astype(np.float64), matrix.values[split.train]
        self.protocol = protocol
        known = np.isfinite(self.values[split.test])
        if not known.any(axis=1).all():
            task = matrix.tasks[split.test[np.argmin(known.any(axis=1))]]
            raise LetheError(
                f"task {task!r}: no cell of its row of Z is known, so that there is nothing to "
                "probe or to predict; measure it, or leave it out of the task table"
            )
        patterns, group = np.unique(known, axis=0, return_inverse=True)
        self.groups = [
            (split.test[group.ravel() == i], pattern) for i, pattern in enumerate(patterns)
        ]
        self._chosen: dict[tuple, np.ndarray] = {}

    def of(self, design: str, k: int, seed: int) -> Iterator[tuple[np.ndarray, ...]]:
        """(row numbers, probe index, mask of columns to score) for each group of rows."""
        for place, (rows, known) in enumerate(self.groups):
            fair = design.endswith("_half")
            half = half_of(len(known), seed) if fair else np.ones_like(known)
            allowed = known & half
            # Something must stay hidden to be predicted.
            count = min(k, int(allowed.sum()) - (not fair))
            key = (place, design, k, seed)
            if key not in self._chosen:
                self._chosen[key] = choose_probes(
                    self.train,
                    count,
                    design.removesuffix("_half"),
                    seed=seed,
                    domains=self.protocol.domains,
                    allowed=allowed,
                )
            scored = known & ~half if fair else known.copy()
            scored[self._chosen[key]] = False
            yield rows, self._chosen[key], scored


def _scores(draws, fitted, design: str, k: int, protocol: _Protocol) -> dict[str, np.ndarray]:
    """Metric -> (seeds, test tasks)."""
    by_seed = []
    for seed in protocol.seeds:
        lines = [
            _score(draw.values, predictor, *drawn, protocol.threshold)
            for draw, predictor in zip(draws, fitted, strict=True)
            for drawn in draw.of(design, k, seed)
        ]
        by_seed.append(np.concatenate(lines))
    names = METRICS + (COVERAGE if fitted[0].has_intervals else ())
    return dict(zip(names, np.moveaxis(np.array(by_seed), 2, 0), strict=True))


def _score(values, predictor, rows, index, scored, threshold) -> np.ndarray:
    truth, probed = values[np.ix_(rows, scored)], values[np.ix_(rows, index)]
    predicted = predictor.predict(rows, index, probed)[:, scored]
    scores = metrics(truth, predicted, threshold, predictor.called_above(len(index)))
    if not predictor.has_intervals:
        return scores
    ends = [predictor.interval(index, probed, level) for level in LEVELS]
    ends = [(low[:, scored], high[:, scored]) for low, high in ends]
    inside = [((low <= truth) & (truth <= high)).mean(axis=1) for low, high in ends]
    widths = [(high - low).mean(axis=1) for low, high in ends]
    return np.hstack([scores, np.transpose(inside + widths)])


def _summary(scores: Mapping[str, np.ndarray], seeds: Sequence[int], head: dict) -> list[dict]:
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
    """Means (n,) of the lines of values (n, m), NaN left out; NaN where nothing is known."""
    known = np.isfinite(values)
    filled = np.where(known, np.square(values) if metric == "rmse" else values, 0.0)
    means = np.where(
        known.any(axis=1), filled.sum(axis=1) / np.maximum(known.sum(axis=1), 1), np.nan
    )
    return np.sqrt(means) if metric == "rmse" else means


def _interval(metric: str, values: np.ndarray) -> tuple[float, float]:
    """Bootstrap interval over tasks (n,) of a metric's mean."""
    if metric != "rmse":
        return bootstrap_interval(values)
    low, high = bootstrap_interval(np.square(values))
    return float(np.sqrt(low)), float(np.sqrt(high))


def predict_rows(
    matrix: Matrix,
    tasks: Mapping[str, tuple[str, str]],
    method: str,
    probes: int,
    seed: int,
    allowed: np.ndarray,
    options: Mapping[str, dict] | None = None,
    choice: str = "random",
    domains: Sequence[str] | None = None,
) -> Matrix:
    """Predicted forgetting of all examples for each task but train, from `probes` of its cells.

    Of the tasks that are predicted, cells of `allowed` (N,) columns only are ever looked at: where
    held-out examples are not allowed, what these tasks do to them stays unseen. Training tasks are
    known in whole, held-out examples included: methods are fitted and tuned on all they hold. A
    probed cell keeps what was measured there. An example that no training task knows
    anything of, as one that the base model answers wrong, stays unknown: it is never replayed.
    """
    train = matrix.values[splits(matrix, tasks)[0].train]
    names = [task for task, (_, split) in tasks.items() if split != "train"]
    completer = make(method, dict(options or {})).fit(train)
    predicted = []
    for row in matrix.rows(names):
        truth = matrix.values[row]
        can = np.asarray(allowed) & np.isfinite(truth)
        index = choose_probes(train, probes, choice, seed=seed, domains=domains, allowed=can)
        line = completer.predict(index, truth[index])
        line[~np.isfinite(train).any(axis=0)] = np.nan
        line[index] = truth[index]
        predicted.append(line)
    return Matrix(np.array(predicted, dtype=np.float32), names, matrix.example_ids)
