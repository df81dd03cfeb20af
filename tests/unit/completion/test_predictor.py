"""The predicted means of a task and of its domains, as a predictor reports them."""

import numpy as np
import pytest
from helpers import tiny

from lethe.completion.predictor import Predictor

UPSTREAM = tiny.upstream(60)
DOMAINS = np.array([example.domain for example in UPSTREAM])


def rows(count, seed=0):
    factors = np.random.default_rng(1).normal(size=(3, 60))
    rng = np.random.default_rng(seed)
    return 0.1 + rng.normal(size=(count, 3)) @ factors * 0.1 + 0.02 * rng.normal(size=(count, 60))


def predictor(train, **changes):
    index = np.arange(0, 60, 6)
    fields = {
        "train": train,
        "example_ids": [example.example_id for example in UPSTREAM],
        "domains": DOMAINS,
        "index": index,
        "probes": [UPSTREAM[i].example for i in index],
        "max_tokens": 24,
    }
    return Predictor(**fields | changes)


def test_means_come_with_intervals_that_hold():
    made = predictor(rows(20))
    inside = []
    for row in rows(60, seed=2):
        prediction = made.predict(row[made.index], level=0.8)
        truth = {"": row.mean()} | {name: row[name == DOMAINS].mean() for name in ("a", "b")}
        for name, mean in {"": prediction.mean, **prediction.domains}.items():
            inside.append(mean.low <= truth[name] <= mean.high)
        values = [mean.value for mean in prediction.domains.values()]
        assert set(prediction.domains) == {"a", "b"} and values == sorted(values, reverse=True)
    assert np.mean(inside) == pytest.approx(0.8, abs=0.1)


def test_probed_examples_count_as_measured_with_and_without_intervals():
    row = rows(1, seed=2)[0]
    for method in ("gaussian", "additive"):
        made = predictor(rows(20), method=method)
        prediction = made.predict(row[made.index])
        completed = prediction.forgetting.copy()
        completed[made.index] = row[made.index]
        assert prediction.mean.value == pytest.approx(completed.mean())
        of_a = completed[DOMAINS == "a"].mean()
        assert prediction.domains["a"].value == pytest.approx(of_a)
        assert np.isfinite(prediction.mean.low) == (method == "gaussian")


def test_the_row_of_another_model_narrows_the_interval_of_the_mean():
    train = rows(20)
    noise = np.random.default_rng(5).normal(size=(21, 60))
    # A sibling that forgets the same, with a little noise of its own.
    made = predictor(train, other=train + 0.01 * noise[:20])
    row = rows(1, seed=2)[0]
    other = row + 0.01 * noise[20]
    without = made.predict(row[made.index]).mean
    with_other = made.predict(row[made.index], other=other).mean
    assert with_other.high - with_other.low < without.high - without.low


def test_the_summary_leads_with_the_means_and_ends_with_the_expected_tenth():
    made = predictor(rows(20))
    lines = made.predict(rows(1, seed=2)[0][made.index]).summary(made.top_tenth).splitlines()
    assert lines[0].startswith("Predicted mean forgetting, with 90 % intervals: +")
    assert len(lines) == 4 and "nats [" in lines[1]
    share = round(100 * made.top_tenth)
    assert share > 40
    assert lines[3] == (
        f"The predicted tenth is expected to hold {share} % of the tenth that is most forgotten "
        "(10 % by chance)."
    )
    few = predictor(rows(2))
    text = few.predict(rows(1)[0][few.index]).summary(few.top_tenth)
    assert "(no interval)" in text and "tenth" not in text
