"""How well forgetting is ranked from probes, beside the mean of the rows."""

import numpy as np
import pytest

from lethe.completion.ranking import check_ranking, expected_top_tenth


def test_probes_rank_better_than_the_mean_where_tasks_differ():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(10, 2)) @ rng.normal(size=(2, 120)) + 0.05 * rng.normal(
        size=(10, 120)
    )
    check = check_ranking(values, probes=12, method="gaussian")
    assert len(check.predicted) == len(check.mean_of_rows) == 10
    assert check.predicted.mean() > 0.8
    assert check.mean_of_rows.mean() < 0.5
    assert "Each of the 10 tasks was predicted from the other 9" in check.sentence()
    assert check.top_tenth.mean() > 0.6
    assert "% of the tenth that is most forgotten (10 % by chance)." in check.sentence()


def test_the_expected_tenth_is_that_of_each_row_predicted_from_the_others():
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(2, 200))
    values = rng.normal(size=(10, 2)) @ factors + 0.05 * rng.normal(size=(10, 200))
    index = np.arange(0, 200, 20)
    assert expected_top_tenth(values, index, method="gaussian") > 0.7
    noise = rng.normal(size=(10, 200))
    assert expected_top_tenth(noise, index, method="gaussian") < 0.2
    values[3, 100:] = np.nan
    values[4, np.setdiff1d(np.arange(200), index)] = np.nan
    assert expected_top_tenth(values, index, method="gaussian") > 0.6
    assert np.isnan(expected_top_tenth(values[:2], index, method="gaussian"))


def test_two_tasks_are_too_few():
    with pytest.raises(ValueError, match="2 tasks"):
        check_ranking(np.zeros((2, 20)), probes=3, method="gaussian")
