"""Which upstream examples are replayed. One class per strategy, by its name in `STRATEGIES`.

Most strategies are a score per replayable example; examples are then drawn by the softmax of the
scores, or the highest scores are taken. `Balanced`, `Coverage`, `Importance`, `GradientMatching`
and `MostForgottenOfGroup` choose sets. `Online` and `ClosedLoop` choose while the training runs.
All of them see replayable examples only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lethe.completion.biases import fill
from lethe.config.replay_settings import PREDICTION_METHODS, WITH_SIBLING, ReplayRun
from lethe.data.examples import UpstreamExample
from lethe.errors import LetheError
from lethe.replay.draws import (
    RANDOM_SHARE,
    check_scored,
    draw_balanced,
    draw_softmax,
    draw_systematic,
    draw_top,
    effective_sample_size,
    expected_draws,
    indices_by_domain,
    softmax_weights,
    temperature_in_nats,
)


@dataclass(frozen=True)
class Pool:
    """Replayable examples and the information that strategies choose by, in the same order.

    Parameters
    ----------
    examples
        The n replayable examples.
    forgetting
        Predicted or measured forgetting (n,) of the new task, nats; NaN where it is unknown.
    base_losses
        Losses (n,) of the base model, nats per token.
    training_rows
        Forgetting (M, n) by the tasks that a prediction may rest on, nats; never the task's own.
    gradient_products
        Inner products (n,) of the base model's gradients on the task and on each example.
    gradient_profiles
        Inner products (M, n) of the base model's gradients on all tasks and on each example.
    """

    examples: Sequence[UpstreamExample]
    forgetting: np.ndarray | None = None
    base_losses: np.ndarray | None = None
    training_rows: np.ndarray | None = None
    gradient_products: np.ndarray | None = None
    gradient_profiles: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        upstream: Sequence[UpstreamExample],
        *,
        forgetting: Mapping[str, float] | None = None,
        base_losses: Mapping[str, float] | None = None,
        training_rows: Mapping[str, np.ndarray] | None = None,
        gradient_products: Mapping[str, float] | None = None,
        gradient_profiles: Mapping[str, np.ndarray] | None = None,
    ) -> "Pool":
        """The replayable examples of `upstream`, with values by example_id.

        Raises
        ------
        LetheError
            If a replayable example has no value.
        """
        examples = [example for example in upstream if example.split == "replayable"]
        columns = _values(examples, training_rows, "forgetting by other tasks")
        profiles = _values(examples, gradient_profiles, "inner products of gradients")
        return cls(
            examples=examples,
            forgetting=_values(examples, forgetting, "score"),
            base_losses=_values(examples, base_losses, "base loss"),
            training_rows=None if columns is None else columns.T,
            gradient_products=_values(examples, gradient_products, "inner product of gradients"),
            gradient_profiles=None if profiles is None else profiles.T,
        )

    @cached_property
    def domains(self) -> np.ndarray:
        """Domain (n,) of each example."""
        return np.array([example.domain for example in self.examples])


def _values(
    examples: Sequence[UpstreamExample], values: Mapping | None, label: str
) -> np.ndarray | None:
    if values is None:
        return None
    for example in examples:
        if example.example_id not in values:
            raise LetheError(f"replay: no {label} for {example.example_id!r}; predict again")
    return np.array([values[example.example_id] for example in examples], dtype=float)


@dataclass(frozen=True)
class Choice:
    """Indices of the replayed examples in the pool, and how concentrated the draw was.

    `effective_sample_size` is that of the weights, `temperature` is in the scores' unit (None
    without a softmax), `pool` is the number of examples that could be drawn. `weights` say as how
    many examples each of `indices` counts in the loss (None: all as one).
    """

    indices: np.ndarray
    effective_sample_size: float
    pool: int
    temperature: float | None = None
    weights: np.ndarray | None = None

    @property
    def is_random(self) -> bool:
        """Whether the draw is random replay in effect, whatever its strategy's name."""
        return self.effective_sample_size > RANDOM_SHARE * self.pool


class Strategy:
    """Chooses replayed examples. `needs` names the parts of the pool that must be given."""

    needs: tuple[str, ...] = ()

    def check(self, pool: Pool, run: ReplayRun) -> None:
        """Raises LetheError, naming the run, if the pool is empty or lacks what is needed."""
        if not pool.examples:
            raise LetheError(
                f"replay {run.name}: no upstream example can be replayed; lower upstream.heldout"
            )
        for part in self.needs:
            if getattr(pool, part) is None:
                raise LetheError(f"replay {run.name}: strategy {run.strategy!r} needs {part}")

    def choose(self, pool: Pool, run: ReplayRun, count: int, seed: Sequence[int]) -> Choice:
        """Chooses `count` examples of the pool; the same seed chooses the same ones.

        Raises
        ------
        LetheError
            If no example of the pool can be replayed.
        """
        raise NotImplementedError


class ScoredStrategy(Strategy):
    """Draws by a score per example: by the softmax of the scores, or the highest scores."""

    def scores(self, pool: Pool) -> np.ndarray:
        """Scores (n,); examples with a higher one are replayed more. NaN: never replayed."""
        raise NotImplementedError

    def choose(self, pool: Pool, run: ReplayRun, count: int, seed: Sequence[int]) -> Choice:
        """Draws as `run.draw` and `run.temperature` say."""
        scores = self.scores(pool)
        possible = int(np.isfinite(scores).sum())
        if run.draw == "top":
            indices = draw_top(scores, count, seed)
            return Choice(indices, float(min(count, possible)), possible)
        temperature = temperature_in_nats(run.temperature, scores, count)
        weights = softmax_weights(scores, temperature)
        indices = draw_softmax(scores / temperature, count, seed)
        return Choice(indices, effective_sample_size(weights), possible, temperature)


class NoReplay(Strategy):
    """Replays nothing: what the fine-tune alone forgets. Needs nothing."""

    def choose(self, pool: Pool, run: ReplayRun, count: int, seed: Sequence[int]) -> Choice:
        """Chooses no example."""
        return Choice(np.empty(0, dtype=int), 0.0, len(pool.examples))


class RandomDraw(ScoredStrategy):
    """All examples are equally likely. Needs nothing."""

    def scores(self, pool: Pool) -> np.ndarray:
        """Zero for all examples."""
        return np.zeros(len(pool.examples))

    def choose(self, pool: Pool, run: ReplayRun, count: int, seed: Sequence[int]) -> Choice:
        """Draws without a temperature: all scores are equal."""
        indices = draw_softmax(self.scores(pool), count, seed)
        return Choice(indices, float(len(pool.examples)), len(pool.examples))


class ByForgetting(ScoredStrategy):
    """Replays what is forgotten most by prediction, or as measured for the oracle.

    The strategies `column_mean`, `additive`, `knn`, `mf` and `gaussian` need that method's
    prediction of the new task. `gaussian_sibling` also needs the new task's row on another model
    that learned the same tasks (`completion.sibling`). `oracle` needs the task's measured row,
    which a user would not have before the fine-tune: it bounds what any prediction can reach.
    """

    needs = ("forgetting",)

    def scores(self, pool: Pool) -> np.ndarray:
        """The forgetting itself, in nats."""
        return pool.forgetting


class ByDomain(ScoredStrategy):
    """Replays the domains that are predicted to suffer most, at random within each.

    Needs the prediction of `replay.prediction`. A score is the mean prediction of its domain.
    """

    needs = ("forgetting",)

    def scores(self, pool: Pool) -> np.ndarray:
        """Mean predicted forgetting of each example's domain, in nats."""
        scores = np.full(len(pool.examples), np.nan)
        is_predicted = np.isfinite(pool.forgetting)
        for indices in indices_by_domain(pool.domains):
            members = indices[is_predicted[indices]]
            if len(members):
                scores[members] = pool.forgetting[members].mean()
        return scores


class ByBaseLoss(ScoredStrategy):
    """Replays the examples that the base model finds hardest. Needs the base losses."""

    needs = ("base_losses",)

    def scores(self, pool: Pool) -> np.ndarray:
        """The base model's losses, in nats per token."""
        return pool.base_losses


class ByMedianBaseLoss(ScoredStrategy):
    """Replays examples of middling difficulty, as the paper's perplexity baseline does.

    Needs the base losses.
    """

    needs = ("base_losses",)

    def scores(self, pool: Pool) -> np.ndarray:
        """Minus the distance from the median loss, in nats per token."""
        return -np.abs(pool.base_losses - np.nanmedian(pool.base_losses))


class ByGradient(ScoredStrategy):
    """Replays examples whose gradient opposes that of the new task, as the paper's baseline does.

    Needs the inner products of the task's gradient with those of the examples (the association
    `gradient`). To first order, a training step on the task raises the loss of an example in
    proportion to the negated product. Scores are scaled to the range 0 to 1, as in the paper's
    code, so a temperature in numbers is in units of that range (the paper: 0.03).
    """

    needs = ("gradient_products",)

    def scores(self, pool: Pool) -> np.ndarray:
        """Negated products, scaled to the range 0 to 1."""
        finite = pool.gradient_products[np.isfinite(pool.gradient_products)]
        if not len(finite) or finite.max() == finite.min():
            return np.where(np.isfinite(pool.gradient_products), 0.0, np.nan)
        return (finite.max() - pool.gradient_products) / (finite.max() - finite.min())


class Balanced(Strategy):
    """Takes the same number of examples from every domain, at random within each. Needs nothing.

    If the number does not divide, the seed decides which domains give one more. A domain whose
    examples are used up gives no more until all are.
    """

    def choose(self, pool: Pool, run: ReplayRun, count: int, seed: Sequence[int]) -> Choice:
        """Takes turns between the domains."""
        indices = draw_balanced(pool.domains, count, seed)
        return Choice(indices, _size_of_domains(pool.domains), len(pool.examples))


def _size_of_domains(domains: np.ndarray) -> float:
    """Effective sample size if every domain has the same weight, shared by its examples."""
    _, sizes = np.unique(domains, return_counts=True)
    return float(len(sizes) ** 2 / (1 / sizes).sum())


class MostForgottenOfGroup(Strategy):
    """Takes the most forgotten example of each group of random candidates.

    The strategy `mir` needs the rises in loss after one virtual training step on the new task
    (maximally interfered retrieval: Aljundi et al. 2019, arXiv 1908.04742). Here the step is taken
    once, before the training. `mir_measured` needs the task's measured row in their place, as the
    paper's reference code does, and so is no method that a user could use. `mir_paper_code` takes
    the least forgotten of each group, because that code sorts in the reverse order. The other two
    do so with `replay.mir_order: paper_code`. A group has `replay.mir_candidates` examples.

    Parameters
    ----------
    reverse
        Take the least forgotten of each group, whatever `replay.mir_order` is.
    """

    needs = ("forgetting",)

    def __init__(self, reverse: bool = False):
        self.reverse = reverse

    def choose(self, pool: Pool, run: ReplayRun, count: int, seed: Sequence[int]) -> Choice:
        """Takes one example per group in each pass over the groups."""
        measured = np.flatnonzero(np.isfinite(pool.forgetting))
        check_scored(pool.forgetting)
        order = measured[draw_softmax(np.zeros(len(measured)), len(measured), seed)]
        turns = np.zeros(len(order), dtype=int)
        is_reversed = self.reverse or run.mir_order == "paper_code"
        for start in range(0, len(order), run.mir_candidates):
            group = pool.forgetting[order[start : start + run.mir_candidates]]
            ranked = np.argsort(group if is_reversed else -group, kind="stable")
            turns[start + ranked] = np.arange(len(group))
        indices = order[np.argsort(turns, kind="stable")]
        return Choice(np.resize(indices, count), float(min(count, len(order))), len(order))


class Coverage(Strategy):
    """Replays a set that is predicted to bring the whole row back to zero.

    Needs the prediction of `replay.prediction` and the rows of the other tasks. With f_j = column j
    of these rows / sqrt(M) and their mean f over the pool, it repeatedly takes the example j of the
    largest r_j (f_j' S f) / (f_j' S f_j + noise). Then r and S are conditioned on forgetting 0 at
    j: r -= (F' S f_j) r_j / (f_j' S f_j + noise), S -= S f_j f_j' S / (f_j' S f_j + noise). It
    starts with r = the prediction and S = identity (M, M). No example is taken twice before all
    are. While another domain has examples left, no domain gives more than `cap` of the draws, or
    more than an equal part of them where that is larger. Among equal examples the first of the pool
    is taken, so the choice does not depend on the seed.

    Parameters
    ----------
    noise
        Noise in units of the mean of f_j' f_j.
    cap
        Largest share of the draws that one domain gives.
    """

    needs = ("forgetting", "training_rows")

    def __init__(self, noise: float = 30.0, cap: float = 0.3):
        self.noise, self.cap = noise, cap

    def choose(self, pool: Pool, run: ReplayRun, count: int, seed: Sequence[int]) -> Choice:
        """Takes examples greedily; the seed plays no part."""
        possible = np.isfinite(pool.forgetting) & np.isfinite(pool.training_rows).any(axis=0)
        indices = np.flatnonzero(possible)
        if not len(indices):
            raise LetheError("replay: no replayable example has a score")
        rows = pool.training_rows[:, indices]
        ranked = indices[
            self._greedy_order(
                columns=fill(rows, np.isfinite(rows)) / np.sqrt(len(rows)),
                residual=pool.forgetting[indices].copy(),
                domains=pool.domains[indices],
                count=min(count, len(indices)),
            )
        ]
        return Choice(np.resize(ranked, count), float(len(ranked)), len(indices))

    def _greedy_order(
        self, *, columns: np.ndarray, residual: np.ndarray, domains: np.ndarray, count: int
    ) -> np.ndarray:
        """Indices (count,) in the order of choice, of columns (M, n) and their residual (n,)."""
        mean = columns.mean(axis=1)
        noise = self.noise * np.square(columns).sum(axis=0).mean()
        # S f_j of all columns; conditioning on j updates it without S itself.
        projected = columns.copy()
        limit = self._limit(domains, count)
        free = np.ones(len(residual), dtype=bool)
        members = indices_by_domain(domains)
        domain_of = np.empty(len(domains), dtype=int)
        for number, indices in enumerate(members):
            domain_of[indices] = number
        counts = np.zeros(len(members), dtype=int)
        order = []
        for _ in range(count):
            variance = np.maximum((columns * projected).sum(axis=0) + noise, 1e-300)
            gain = residual * (mean @ projected) / variance
            candidates = free & (counts < limit)[domain_of]
            if not candidates.any():
                candidates = free
            best = int(np.argmax(np.where(candidates, gain, -np.inf)))
            order.append(best)
            free[best] = False
            counts[domain_of[best]] += 1
            direction = projected[:, best] / variance[best]
            covariance = columns.T @ projected[:, best]
            residual = residual - covariance * residual[best] / variance[best]
            projected = projected - np.outer(direction, covariance)
        return np.array(order, dtype=int)

    def _limit(self, domains: np.ndarray, count: int) -> int:
        """Largest number of examples of one domain; never too few to fill all draws."""
        return max(int(np.ceil(self.cap * count)), int(np.ceil(count / len(np.unique(domains)))))


class Importance(Strategy):
    """Draws in proportion to the predicted forgetting, and weighs each example by the inverse.

    Needs the prediction of `replay.prediction`. Importance sampling: an example that is drawn twice
    as often counts half as much, so the replay term still estimates its mean over all replayable
    examples. It does so with less noise than a random draw, as far as the gradients of much
    forgotten examples are larger (Katharopoulos and Fleuret 2018, arXiv 1803.00942). All other
    strategies that predict change what is estimated: they favour what is forgotten most, and pay
    for it in new-task loss. Draws are systematic (`lethe.replay.draws.draw_systematic`). The
    weights have a mean of 1.

    With `replay.importance_correction` c, an example that is drawn twice as often counts 1 / 2^c as
    much. Below 1 this favours what is forgotten most, but less than the draw by itself would
    (c = 0). The formula is that of prioritized experience replay (Schaul et al. 2016, arXiv
    1511.05952, section 3.4), where c is called beta.

    Parameters
    ----------
    least
        Examples whose prediction is lower are drawn as if it were this, in nats. A weight of an
        example that is hardly ever drawn would be noise.
    """

    needs = ("forgetting",)

    def __init__(self, least: float = 0.02):
        self.least = least

    def choose(self, pool: Pool, run: ReplayRun, count: int, seed: Sequence[int]) -> Choice:
        """Draws examples, each as often as expected up to rounding, and gives their weights."""
        check_scored(pool.forgetting)
        possible = np.flatnonzero(np.isfinite(pool.forgetting))
        forgetting = pool.forgetting[possible]
        sizes = np.maximum(forgetting, self.least)
        expected = expected_draws(sizes, count)
        drawn = draw_systematic(expected, forgetting, pool.domains[possible], seed)
        weights = expected[drawn] ** -run.importance_correction
        size = effective_sample_size(sizes / sizes.sum())
        return Choice(possible[drawn], size, len(possible), weights=weights / weights.mean())


class GradientMatching(Strategy):
    """Replays a set whose mean gradient is close to that of all replayable examples.

    The idea is that of gradient coresets for replay (Tiwari et al. 2022, arXiv 2111.11210).
    Gradients are compared by their inner products with the tasks' gradients, because to first
    order only these decide how the tasks change an example's loss. Needs the association
    `gradient`, which holds these products. Each task's products are divided by their standard
    deviation over the pool.

    With p_j = the products (M,) of example j and m = their mean over the pool, the n-th example is
    the one with the smallest |n m - s - p_j|, where s is the sum over those chosen before (herding:
    Welling 2009). The choice is the same for all tasks and seeds, and no example is taken twice
    before all are.
    """

    needs = ("gradient_profiles",)

    def choose(self, pool: Pool, run: ReplayRun, count: int, seed: Sequence[int]) -> Choice:
        """Takes examples greedily; the seed plays no part."""
        is_known = np.isfinite(pool.gradient_profiles)
        # A task of which no product is known says nothing about any example.
        known_tasks = is_known.any(axis=1)
        indices = np.flatnonzero(is_known[known_tasks].all(axis=0) & is_known.any(axis=0))
        if not len(indices):
            raise LetheError("replay: no replayable example has a gradient")
        profiles = pool.gradient_profiles[known_tasks][:, indices].astype(float)
        spread = profiles.std(axis=1, keepdims=True)
        chosen = indices[self._order(profiles / np.where(spread > 0, spread, 1), count)]
        return Choice(np.resize(chosen, count), float(len(chosen)), len(indices))

    def _order(self, profiles: np.ndarray, count: int) -> np.ndarray:
        """Indices (at most count,) of profiles (M, n) in the order of choice."""
        mean = profiles.mean(axis=1)
        norms = np.square(profiles).sum(axis=0)
        missing = np.zeros_like(mean)
        order: list[int] = []
        for _ in range(min(count, profiles.shape[1])):
            missing += mean
            distances = norms - 2 * (missing @ profiles)
            distances[order] = np.inf
            best = int(np.argmin(distances))
            order.append(best)
            missing -= profiles[:, best]
        return np.array(order, dtype=int)


class Online(ByForgetting):
    """Replays at random first, then by what the half-trained model is predicted to forget.

    The paper's two phases: after a share of the steps (`replay.online_after`) the model is probed
    once, and the rest of the examples is drawn by the prediction. Needs the rows of the other
    tasks and the base losses, and `replay.probes` forward passes during the training. It needs no
    fine-tune of the new task beforehand.

    A training must be running, so `lethe.replay.phases.PhasedChoice` draws for this class.
    """

    needs = ("training_rows", "base_losses")

    def choose(self, pool: Pool, run: ReplayRun, count: int, seed: Sequence[int]) -> Choice:
        """Refuses, because there is no half-trained model before the training."""
        raise LetheError(
            f"replay {run.name}: the strategy {run.strategy} chooses while the training runs; call "
            "lethe.replay.runs.fine_tune_with_replay"
        )


class ClosedLoop(Online):
    """Replays at random first, then probes the model several times and draws the rest again.

    Probes after each share of the steps in `replay.closed_loop_after`. Each draw replaces the part
    of the one before that has not been replayed yet. Needs the same as `Online`, and
    `replay.probes` forward passes each time.
    """


STRATEGIES: dict[str, Strategy] = {
    "none": NoReplay(),
    "random": RandomDraw(),
    "balanced": Balanced(),
    "oracle": ByForgetting(),
    **{method: ByForgetting() for method in PREDICTION_METHODS},
    WITH_SIBLING: ByForgetting(),
    "domain": ByDomain(),
    "coverage": Coverage(),
    "importance": Importance(),
    "perplexity": ByBaseLoss(),
    "perplexity_median": ByMedianBaseLoss(),
    "gradient": ByGradient(),
    "gradient_matching": GradientMatching(),
    "online": Online(),
    "closed_loop": ClosedLoop(),
    "mir": MostForgottenOfGroup(),
    "mir_measured": MostForgottenOfGroup(),
    "mir_paper_code": MostForgottenOfGroup(reverse=True),
}


def choose_replayed(
    pool: Pool, run: ReplayRun, count: int, seed: Sequence[int]
) -> tuple[list[UpstreamExample], Choice]:
    """Chooses `count` replayable examples by the strategy of a run.

    Parameters
    ----------
    seed
        Of the draw. The same seed draws the same examples for equal weights.

    Returns
    -------
    The examples, in the order in which they are replayed, and the choice.

    Raises
    ------
    LetheError
        If the strategy needs something that the pool lacks, or no example can be replayed.
    """
    strategy = STRATEGIES[run.strategy]
    strategy.check(pool, run)
    choice = strategy.choose(pool, run, count, seed)
    return [pool.examples[i] for i in choice.indices], choice
