import numpy as np
import pytest
from scipy import stats

from lethe.analysis.component_reading import (
    complete_part,
    domain_records,
    find_components,
    grow_task_tree,
    loading_records,
)
from lethe.matrix.forgetting_matrix import Matrix

TASKS = ["add", "double", "upper", "reverse"]
# The first half of the examples is code, which two of the tasks make the model forget.
DOMAINS = {f"x-{number}": "code" if number < 20 else "news" for number in range(40)}


def planted(noise: float = 0.01) -> Matrix:
    rng = np.random.default_rng(0)
    kinds = np.repeat([[1.0, 0.1], [0.1, 1.0]], 20, axis=0)
    tasks = np.array([[1.0, 0.0], [0.9, 0.0], [0.0, 0.5], [0.0, 0.4]])
    values = tasks @ kinds.T * rng.uniform(0.5, 1.5, 40) + noise * rng.normal(size=(4, 40))
    return Matrix(values.astype(np.float32), TASKS, list(DOMAINS))


def test_loadings_multiply_to_the_matrix_and_have_their_scale():
    z = planted()
    factors = find_components(z)
    assert factors.rank == 4
    np.testing.assert_allclose(
        factors.task_loadings @ factors.example_loadings.T, z.values, atol=1e-5
    )
    np.testing.assert_allclose(np.square(factors.example_loadings).mean(axis=0), 1)
    np.testing.assert_allclose(factors.shares.sum(), 1)
    assert (factors.task_loadings.sum(axis=0) > 0).all()


def test_the_first_component_lists_the_tasks_and_texts_that_were_planted():
    lines = loading_records(find_components(planted()), DOMAINS)
    first = [line for line in lines if line["component"] == 1 and line["end"] == "highest"]
    assert [line["name"] for line in first if line["kind"] == "task"] == ["add", "double"]
    examples = [line for line in first if line["kind"] == "example"]
    assert {line["domain"] for line in examples} == {"code"} and len(examples) == 10
    loadings = [line["loading"] for line in examples]
    assert loadings == sorted(loadings, reverse=True)
    lowest = [line for line in lines if line["component"] == 1 and line["end"] == "lowest"]
    assert [line["name"] for line in lowest if line["kind"] == "task"] == ["reverse", "upper"]


def test_planted_domains_are_enriched_and_corrected_for_all_tests():
    lines = domain_records(find_components(planted()), DOMAINS)
    assert len(lines) == 4 * 2 * 2
    code = next(
        line
        for line in lines
        if (line["component"], line["end"], line["domain"]) == (1, "highest", "code")
    )
    assert (code["examples"], code["drawn"], code["expected"]) == (4, 4, 2)
    assert code["p"] == pytest.approx(stats.hypergeom.pmf(4, 40, 20, 4))
    corrected = stats.false_discovery_control([line["p"] for line in lines])
    np.testing.assert_allclose([line["q"] for line in lines], corrected)
    assert all(line["q"] >= line["p"] for line in lines)


def test_random_domains_are_seldom_enriched():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(20):
        labels = rng.permutation(list(DOMAINS.values()))
        shuffled = dict(zip(DOMAINS, labels, strict=True))
        lines = domain_records(find_components(planted()), shuffled)
        hits += any(line["q"] < 0.05 for line in lines)
    assert hits <= 2


def test_tasks_that_forget_the_same_examples_are_joined_first():
    tree = grow_task_tree(planted())
    lines = tree.records()
    assert [line["task"] for line in lines[:4]] == TASKS
    joined = [{line["first"], line["second"]} for line in lines[4:]]
    assert {0, 1} in joined[:2] and {2, 3} in joined[:2]
    assert lines[-1]["tasks"] == 4 and lines[-1]["distance"] > 1
    assert {*tree.order[:2]} in ({"add", "double"}, {"upper", "reverse"})


def test_missing_cells_are_left_out_and_never_filled():
    z = planted()
    values = z.values.copy()
    values[1, 3] = np.nan
    part = complete_part(Matrix(values, z.tasks, z.example_ids))
    assert len(part.example_ids) == 39 and "x-3" not in part.example_ids
    # No example has all tasks: the task that lacks half of them is left out.
    values[3, :20] = np.nan
    values[2, 20:] = np.nan
    part = complete_part(Matrix(values, z.tasks, z.example_ids))
    assert 2 <= len(part.tasks) < 4 and np.isfinite(part.values).all()
    nothing = Matrix(np.full((2, 3), np.nan), ["a", "b"], ["x", "y", "z"])
    assert find_components(nothing).rank == 0
    assert loading_records(find_components(nothing), {}) == []
    assert len(grow_task_tree(nothing).records()) == len(grow_task_tree(nothing).tasks)


@pytest.mark.parametrize("tasks", [1, 2])
def test_few_tasks_constant_rows_and_zeros_are_no_error(tasks):
    z = planted()
    few = Matrix(z.values[:tasks], z.tasks[:tasks], z.example_ids)
    assert find_components(few).rank == tasks
    assert domain_records(find_components(few), DOMAINS)
    assert len(grow_task_tree(few).records()) == 2 * tasks - 1
    zeros = Matrix(np.zeros((tasks, 5)), z.tasks[:tasks], z.example_ids[:5])
    assert find_components(zeros).rank == 0
    assert domain_records(find_components(zeros), DOMAINS) == []
    tree = grow_task_tree(zeros)
    assert np.isfinite(tree.merges).all()
