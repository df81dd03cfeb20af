"""How well forgetting is ranked from probes, beside the mean of the rows."""

import numpy as np
import pytest

from lethe.completion.ranking import check_ranking


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


def test_two_tasks_are_too_few():
    with pytest.raises(ValueError, match="2 tasks"):
        check_ranking(np.zeros((2, 20)), probes=3, method="gaussian")
