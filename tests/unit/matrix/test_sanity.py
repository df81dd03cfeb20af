import json

import numpy as np
import pytest

from lethe.matrix.forgetting_matrix import Matrix
from lethe.matrix.sanity import QUANTILES, check_sanity, describe_sanity


def matrix(values):
    values = np.asarray(values, dtype=np.float32)
    names = [f"t{i}" for i in range(len(values))], [f"e{j}" for j in range(values.shape[1])]
    return Matrix(values, *names)


@pytest.fixture
def ordinary():
    return matrix(np.random.default_rng(0).normal(0.3, 0.1, (8, 400)))


def test_an_ordinary_matrix_gives_no_warning(ordinary):
    report = check_sanity(ordinary)
    assert report["warnings"] == []
    assert report["shape"] == {"tasks": 8, "examples": 400}
    assert report["values"]["mean"] == pytest.approx(0.3, abs=0.01)
    assert json.loads(json.dumps(report)) == report


def test_every_defect_is_counted_named_and_warned_of(ordinary):
    z = ordinary.values
    z[0, 0], z[1, 1], z[2, 2] = np.nan, np.inf, 90
    z[4] = z[3]
    z[:, 8] = z[:, 7]
    z[5] = 0.25
    z[:, 9] = 0.5
    z[5] = 0.25
    report = check_sanity(ordinary)
    assert (report["missing"]["nan"], report["missing"]["infinite"]) == (1, 1)
    far = report["outliers"]["farthest"][0]
    assert (far["task"], far["example_id"], far["value"]) == ("t2", "e2", 90)
    assert report["duplicates"]["tasks"] == {"count": 1, "groups": [["t3", "t4"]]}
    assert report["duplicates"]["examples"]["groups"] == [["e7", "e8"]]
    assert report["constants"]["tasks"] == {"count": 1, "first": ["t5"]}
    warnings = " ".join(report["warnings"])
    for part in ("1 infinite", "1 cells lie", "1 tasks repeat", "1 examples repeat", "constant"):
        assert part in warnings


def test_an_example_of_one_value_for_all_tasks_is_constant(ordinary):
    ordinary.values[:, 9] = 0.5
    assert check_sanity(ordinary)["constants"]["examples"] == {"count": 1, "first": ["e9"]}


def test_a_turned_sign_is_warned_of(ordinary):
    turned = matrix(-ordinary.values)
    report = check_sanity(turned)
    assert report["sign"]["negative_share"] > 0.99
    assert "mean forgetting is negative" in report["warnings"][0]
    assert "warning: mean forgetting" in describe_sanity(report)


def test_lines_without_any_value_are_empty_and_not_duplicates():
    report = check_sanity(matrix([[1, np.nan, np.nan], [2, np.nan, np.nan]]))
    assert report["missing"]["empty_examples"] == {"count": 2, "first": ["e1", "e2"]}
    assert report["duplicates"]["examples"]["count"] == 0


def test_a_binary_matrix_has_no_outliers():
    values = (np.random.default_rng(0).random((6, 300)) < 0.1).astype(float)
    report = check_sanity(matrix(values))
    assert report["values"]["binary"] and report["outliers"]["count"] == 0


def test_a_matrix_without_a_number_is_described_not_computed_with():
    report = check_sanity(matrix([[np.nan, np.inf]]))
    assert report["warnings"] == ["no cell holds a number"]
    assert "1 x 2" not in describe_sanity(report) and "1 tasks x 2 examples" in describe_sanity(
        report
    )


def test_duplicates_and_constants_are_those_of_a_comparison_line_by_line():
    """They are searched for by hashes, in slices, because a Z may have millions of examples."""
    values = np.random.default_rng(0).integers(0, 3, (4, 400)).astype(np.float32)
    values[:, 7] = np.nan
    values[0, 9] = np.nan
    report = check_sanity(Matrix(values, list("abcd"), [str(j) for j in range(400)]))
    measured = [j for j in range(400) if np.isfinite(values[:, j]).any()]
    different = {values[:, j].tobytes() for j in measured}
    assert report["duplicates"]["examples"]["count"] == len(measured) - len(different)
    spans = np.nanmax(values[:, measured], axis=0) - np.nanmin(values[:, measured], axis=0)
    assert report["constants"]["examples"]["count"] == int((spans == 0).sum())
    quantiles = np.nanquantile(values.astype(np.float64), QUANTILES)
    np.testing.assert_allclose(list(report["values"]["quantiles"].values()), quantiles)
    assert report["values"]["sd"] == pytest.approx(np.nanstd(values.astype(np.float64)))
