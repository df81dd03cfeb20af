import numpy as np
import pytest

from lethe.analysis.finer_measures import (
    describe_finer_measures,
    explained_by_line,
    finer_matrices,
)

RNG = np.random.default_rng(0)
# Tasks and examples differ, and every cell has its own part.
MEANS = RNG.normal(0.3, 0.1, (9, 1)) + RNG.normal(0, 0.2, (1, 200))
Z = MEANS + RNG.normal(0, 0.1, (9, 200))


def measures(**changes) -> dict[str, np.ndarray]:
    shares = {}
    for name in ("top1_right_before", "top1_right_after"):
        shares[name] = np.full(Z.shape, 0.5)
    values = {
        "kl": 2 * Z + 0.1,
        "top1_changed": RNG.random(Z.shape),
        "top1_lost": np.full(Z.shape, 0.2),
        "top1_gained": np.full(Z.shape, 0.2),
        "entropy_before": np.zeros(Z.shape),
        "entropy_after": -Z,
        **shares,
    }
    return values | changes


def statistics(lines, measure):
    return {line["statistic"]: line for line in lines if line["measure"] == measure}


def test_a_measure_that_is_a_line_of_forgetting_is_explained_by_it_completely():
    kl = statistics(describe_finer_measures(Z, measures()), "kl")
    for name in ("pearson_within", "spearman_within", "pearson_tasks"):
        assert kl[name]["value"] == pytest.approx(1)
    assert kl["from_forgetting"]["value"] == pytest.approx(1)
    assert kl["to_forgetting"]["value"] == pytest.approx(1)
    assert kl["mean"]["value"] == pytest.approx(2 * Z.mean() + 0.1)
    entropy = statistics(describe_finer_measures(Z, measures()), "entropy_change")
    assert entropy["pearson_within"]["value"] == pytest.approx(-1)


def test_a_measure_of_noise_is_neither_explained_nor_of_low_rank():
    noise = statistics(describe_finer_measures(Z, measures()), "top1_changed")
    assert abs(noise["pearson_within"]["value"]) < 0.1
    assert abs(noise["from_forgetting"]["value"]) < 0.1
    assert noise["rank_above_shuffled"]["value"] == 0
    low, value, high = (noise["spearman_within"][key] for key in ("low", "value", "high"))
    assert low < value < high


def test_tokens_that_change_sides_at_random_are_all_by_chance():
    even = np.full(Z.shape, 0.25)
    lines = describe_finer_measures(Z, measures(top1_lost=even, top1_gained=even - 0.05))
    lost = statistics(lines, "top1_lost")
    assert lost["by_chance"]["value"] == pytest.approx(0.25)
    assert lost["beyond_chance"]["value"] == pytest.approx(0)
    assert statistics(lines, "top1_gained")["beyond_chance"]["value"] == pytest.approx(-0.05)


def test_answers_are_compared_with_guesses_where_exact_match_is_measured():
    gained = np.where(RNG.random(Z.shape) < 0.3, 1.0, 0.0)
    gained[:, :50] = np.nan
    chance = np.full(Z.shape, 0.1)
    values = measures(answer_gained=gained, answer_by_chance=chance)
    assert "answer_gained" in finer_matrices(values)
    found = statistics(describe_finer_measures(Z, values), "answer_gained")
    assert found["by_chance"]["value"] == pytest.approx(0.1)
    assert found["beyond_chance"]["value"] == pytest.approx(np.nanmean(gained) - 0.1)


def test_the_line_is_fitted_without_the_task_that_it_is_judged_on():
    target = Z.copy()
    # The example means stay, so only this task's own deviations point the other way.
    target[3] = 2 * MEANS[3] - Z[3]
    shares = explained_by_line(target, Z)
    assert shares[3] < 0 < np.delete(shares, 3).min()


def test_missing_cells_and_constant_rows_leave_the_rest():
    holes = Z.copy()
    holes[:, 5] = np.nan
    holes[2, :10] = np.nan
    lines = describe_finer_measures(holes, measures(kl=np.zeros(Z.shape)))
    assert np.isnan(statistics(lines, "kl")["spearman_within"]["value"])
    changed = statistics(lines, "top1_changed")
    assert np.isfinite(changed["from_forgetting"]["value"])


def test_another_shape_is_refused_by_name():
    with pytest.raises(ValueError, match="kl has shape"):
        describe_finer_measures(Z, measures(kl=Z[:, :4]))
