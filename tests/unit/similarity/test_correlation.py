import numpy as np
import pytest
from scipy import stats

from lethe.config.task_table import Task
from lethe.matrix.forgetting_matrix import Matrix
from lethe.similarity.correlation import correlate_with_forgetting, mean_of_other_tasks


@pytest.fixture
def case():
    rng = np.random.default_rng(2)
    z = rng.normal(size=(6, 50)) + rng.normal(size=(6, 1))
    z[0, :4] = np.nan
    tasks = {}
    for i in range(6):
        split = "test" if i in (2, 5) else "train"
        tasks[f"t{i}"] = Task(name=f"t{i}", group="g", split=split)
    matrix = Matrix(z, list(tasks), [f"e{i}" for i in range(50)])
    return matrix, tasks, {"text": z + rng.normal(size=z.shape), "flat": np.ones(z.shape)}


def lines(case):
    return {(line["association"], line["tasks"]): line for line in correlate_with_forgetting(*case)}


def test_correlations_are_scipys_over_the_known_cells(case):
    matrix, _, associations = case
    for name, rows in (("all", slice(None)), ("test", [2, 5])):
        line = lines(case)["text", name]
        x, y = matrix.values[rows].ravel(), associations["text"][rows].ravel()
        x, y = x[np.isfinite(x)], y[np.isfinite(x)]
        assert line["n_cells"] == len(x)
        assert line["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
        assert line["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)


def test_within_is_the_mean_of_each_tasks_own_spearman(case):
    matrix, _, associations = case
    rows = [2, 5]
    by_row = [stats.spearmanr(matrix.values[r], associations["text"][r]).statistic for r in rows]
    assert lines(case)["text", "test"]["spearman_within"] == pytest.approx(np.mean(by_row))


def test_the_interval_holds_the_value_and_widens_with_fewer_tasks(case):
    line = lines(case)["text", "all"]
    for key in ("pearson", "spearman", "spearman_within"):
        assert line[f"{key}_low"] < line[key] < line[f"{key}_high"]


def test_the_interval_is_that_of_resampling_whole_rows(case):
    matrix, _, associations = case
    rng = np.random.default_rng(5)
    resampled = []
    for _ in range(4000):
        rows = rng.integers(0, 6, 6)
        x, y = matrix.values[rows].ravel(), associations["text"][rows].ravel()
        finite = np.isfinite(x)
        resampled.append(np.corrcoef(x[finite], y[finite])[0, 1])
    line = lines(case)["text", "all"]
    # Expanded percentiles of six tasks: Phi(-sqrt(6 / 5) t).
    low, high = np.quantile(resampled, [0.00243, 0.99757])
    assert line["pearson_low"] == pytest.approx(low, abs=0.03)
    assert line["pearson_high"] == pytest.approx(high, abs=0.03)


def test_a_constant_association_has_no_correlation(case):
    assert np.isnan(lines(case)["flat", "all"]["pearson"])
    assert np.isnan(lines(case)["flat", "all"]["spearman_within"])


def test_forgetting_on_other_tasks_never_holds_the_tasks_own_row(case):
    z = case[0].values
    for used in (np.ones(6, bool), np.array([1, 1, 0, 1, 1, 0], bool)):
        means = mean_of_other_tasks(z, used)
        for row in range(6):
            others = [r for r in range(6) if used[r] and r != row]
            np.testing.assert_allclose(means[row], np.nanmean(z[others], axis=0))


def test_the_base_rate_of_test_tasks_is_of_training_tasks_only(case):
    matrix, tasks, _ = case
    changed = matrix.values.copy()
    changed[5] = np.random.default_rng(0).normal(size=50)
    is_train = np.array([task.split == "train" for task in tasks.values()])
    other = mean_of_other_tasks(changed, is_train)
    same = mean_of_other_tasks(matrix.values, is_train)
    np.testing.assert_array_equal(other[2], same[2])
    assert ("base_rate", "test") in lines(case) and ("other_tasks", "test") in lines(case)
