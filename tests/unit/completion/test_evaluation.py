import numpy as np
import pytest

from lethe.completion import BINARY, METHODS, evaluation
from lethe.completion.evaluation import evaluate
from lethe.completion.probes import BINARY_CHOICES, half_of, random_probes
from lethe.completion.scores import METRICS, score_rows
from lethe.completion.splits import make_splits
from lethe.config.analysis_settings import LOGISTIC
from lethe.config.task_table import Task
from lethe.errors import LetheError
from lethe.matrix.forgetting_matrix import Matrix

RNG = np.random.default_rng(0)
TASKS = {}
for number in range(16):
    split_name = "test" if number % 4 == 3 else "train"
    TASKS[f"t{number}"] = Task(name=f"t{number}", group=f"g{number % 3}", split=split_name)
VALUES = RNG.normal(size=(16, 2)) @ RNG.normal(size=(2, 90)) + 0.3 * RNG.normal(size=(16, 90))
Z = Matrix(VALUES.astype(np.float32), list(TASKS), [str(j) for j in range(90)])
PROTOCOL = {
    "methods": ["column_mean", "gaussian"],
    "probes": [5, 20],
    "seeds": [0, 1],
    "threshold": 0.5,
}


def lines(records, **wanted):
    return [r for r in records if all(r[key] == value for key, value in wanted.items())]


def test_no_task_is_both_learned_from_and_predicted():
    for split in make_splits(Z, TASKS):
        assert not set(split.train) & set(split.test)
        assert all(TASKS[Z.tasks[row]].split == "train" for row in split.train)


def test_a_task_of_split_ood_is_predicted_out_of_domain_only():
    apart = {name: Task(name=name, group="apart", split="ood") for name in ("t0", "t1")}
    tasks = TASKS | apart
    found = make_splits(Z, tasks)
    assert not {0, 1} & {*found[0].train, *found[0].test}
    apart = [split for split in found[1:] if {0, 1} <= set(split.test)]
    assert len(apart) == 1 and len(apart[0].test) == 2
    for split in found:
        assert not {0, 1} & set(split.train)


def test_a_score_is_that_of_fitting_and_predicting_by_hand():
    records = evaluate(Z, TASKS, **PROTOCOL)
    found = lines(
        records, split="in_domain", method="gaussian", k=5, seed="1", metric="rmse", probes="random"
    )
    split = make_splits(Z, TASKS)[0]
    method = METHODS["gaussian"]().fit(Z.values[split.train])
    index = random_probes(90, 5, 1)
    hidden = np.setdiff1d(np.arange(90), index)
    rows = Z.values[split.test].astype(float)
    missed = [method.predict(index, row[index])[hidden] - row[hidden] for row in rows]
    assert [r["value"] for r in found] == [pytest.approx(np.sqrt(np.square(missed).mean()))]


def test_every_score_has_its_spread_over_seeds_and_tasks():
    for record in lines(evaluate(Z, TASKS, **PROTOCOL), seed="all"):
        assert record["sd_over_seeds"] >= 0
        assert record["low"] <= record["high"] or np.isnan(record["value"])


def test_methods_with_intervals_have_coverage_and_width_that_grow_with_the_level():
    records = lines(evaluate(Z, TASKS, **PROTOCOL), seed="all", split="out_of_domain", k=20)
    values = {r["metric"]: r["value"] for r in records if r["method"] == "gaussian"}
    for what in ("coverage", "width"):
        grown = [values[f"{what}_{level}"] for level in (50, 80, 90, 95)]
        assert grown == sorted(grown)
    assert not [r for r in records if r["method"] == "column_mean" and "coverage" in r["metric"]]


def test_chosen_probes_are_scored_in_the_half_they_were_not_chosen_from():
    records = evaluate(Z, TASKS, **PROTOCOL, probe_choice=["random", "a_optimal"])
    assert {r["probes"] for r in records} == {"random", "random_half", "a_optimal_half"}
    by = [
        lines(records, method="column_mean", probes=f"{choice}_half", metric="rmse", seed="0")
        for choice in ("random", "a_optimal")
    ]
    # Means look at no probe and both are scored on the same half, whatever k.
    assert len({round(r["value"], 12) for r in by[0] + by[1] if r["split"] == "in_domain"}) == 1


def test_a_row_that_is_known_in_the_half_of_the_probes_only_is_refused_by_name():
    test = next(i for i, name in enumerate(Z.tasks) if TASKS[name].split == "test")
    seed = PROTOCOL["seeds"][0]
    half = half_of(len(Z.example_ids), seed)
    values = Z.values.copy()
    values[test] = np.nan
    values[test, np.flatnonzero(half)[:3]] = 0.1
    matrix = Matrix(values, Z.tasks, Z.example_ids)
    with pytest.raises(LetheError, match=rf"{Z.tasks[test]!r} has 3 measured examples, all in"):
        evaluate(matrix, TASKS, **PROTOCOL | {"probes": [1]}, probe_choice=["random", "a_optimal"])


def test_a_seed_without_a_value_is_left_out_of_the_mean():
    f1 = np.array([[0.5, 0.5], [np.nan, np.nan], [0.7, 0.7]])
    lines = evaluation._summarise({"f1": f1}, seeds=[0, 1, 2], head={})
    assert lines[-1]["value"] == pytest.approx(0.6)
    assert lines[-1]["sd_over_seeds"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    missing = np.full((2, 2), np.nan)
    nothing = evaluation._summarise({"f1": missing}, seeds=[0, 1], head={})[-1]
    assert np.isnan(nothing["value"]) and nothing["sd_over_seeds"] is None


def test_chosen_probes_are_among_the_examples_that_training_tasks_know():
    values = Z.values.copy()
    values[[Z.tasks.index(name) for name in TASKS if TASKS[name].split == "train"], :30] = np.nan
    protocol = PROTOCOL | {"probes": [40]}
    records = evaluate(
        Matrix(values, Z.tasks, Z.example_ids), TASKS, **protocol, probe_choice=["a_optimal"]
    )
    assert all(np.isfinite(r["value"]) for r in lines(records, metric="rmse"))


def test_an_association_is_scored_with_and_without_the_column_mean():
    records = evaluate(Z, TASKS, **PROTOCOL, associations={"text": VALUES * 2 + 1})
    values = {
        r["method"]: r["value"]
        for r in lines(records, split="in_domain", k=5, seed="all", metric="rmse")
    }
    # It is Z in other units here, so the line is found exactly.
    assert values["text"] < 1e-5 and values["text_and_mean"] < 1e-5


def test_an_association_that_saw_other_groups_is_scored_in_domain_only():
    given = {"associations": {"text": VALUES * 2 + 1}, "in_domain_only": ["text"]}
    records = evaluate(Z, TASKS, **PROTOCOL, **given)
    groups = {f"out_of_domain:g{number}" for number in range(3)}
    assert {r["split"] for r in records} == {"in_domain", "out_of_domain"} | groups
    assert {r["split"] for r in records if r["method"] == "text"} == {"in_domain"}


def test_an_association_that_was_trained_on_z_is_not_set_beside_the_column_mean():
    given = {"associations": {"tower": VALUES * 2 + 1, "text": VALUES}, "in_domain_only": ["tower"]}
    methods = {r["method"] for r in evaluate(Z, TASKS, **PROTOCOL, **given)}
    assert methods == {"column_mean", "gaussian", "tower", "text", "text_and_mean"}


def test_a_sibling_gives_one_more_method_with_intervals():
    sibling = VALUES + 0.05 * np.random.default_rng(3).normal(size=VALUES.shape)
    sibling[Z.tasks.index("t7")] = np.nan
    records = evaluate(Z, TASKS, **PROTOCOL, sibling=sibling)
    assert {r["method"] for r in records} == {"column_mean", "gaussian", "gaussian_sibling"}
    scores = {}
    for name in ("gaussian", "gaussian_sibling"):
        found = lines(records, split="in_domain", method=name, k=5, seed="all", probes="random")
        scores[name] = {r["metric"]: r["value"] for r in found}
    assert scores["gaussian_sibling"]["rmse"] < 0.8 * scores["gaussian"]["rmse"]
    for width in ("width_90", "task_mean_width_90"):
        assert scores["gaussian_sibling"][width] < scores["gaussian"][width]
    without = lines(evaluate(Z, TASKS, **PROTOCOL), method="gaussian")
    assert lines(records, method="gaussian") == without
    with pytest.raises(ValueError, match=r"sibling has shape \(2, 3\)"):
        evaluate(Z, TASKS, **PROTOCOL, sibling=np.ones((2, 3)))


def test_a_prior_gives_one_more_method_that_never_sees_its_rows_of_the_test_tasks():
    other = Z.values + 0.05 * np.random.default_rng(3).normal(size=VALUES.shape)
    prior = Matrix(other.astype(np.float32), Z.tasks, Z.example_ids)
    records = evaluate(Z, TASKS, **PROTOCOL, prior=prior)
    assert {r["method"] for r in records} == {"column_mean", "gaussian", "gaussian_prior"}
    assert lines(records, method="gaussian") == lines(
        evaluate(Z, TASKS, **PROTOCOL), method="gaussian"
    )
    tested = [number for number in range(16) if number % 4 == 3]
    corrupted = prior.values.copy()
    corrupted[tested] = 1e6
    corrupted_prior = Matrix(corrupted, Z.tasks, Z.example_ids)
    again = evaluate(Z, TASKS, **PROTOCOL, prior=corrupted_prior)
    assert lines(again, split="in_domain") == lines(records, split="in_domain")


def test_a_prior_without_the_training_tasks_is_ignored_and_other_examples_are_refused():
    foreign = Matrix(Z.values, [f"foreign{number}" for number in range(16)], Z.example_ids)
    records = evaluate(Z, TASKS, **PROTOCOL, prior=foreign)
    rmse = {"metric": "rmse", "seed": "all", "split": "in_domain"}
    prior = [r["value"] for r in lines(records, method="gaussian_prior", **rmse)]
    assert prior == [r["value"] for r in lines(records, method="gaussian", **rmse)]
    reversed_ids = Matrix(Z.values, Z.tasks, Z.example_ids[::-1])
    with pytest.raises(ValueError, match="examples of the prior"):
        evaluate(Z, TASKS, **PROTOCOL, prior=reversed_ids)


def test_an_association_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"text has shape \(2, 3\)"):
        evaluate(Z, TASKS, **PROTOCOL, associations={"text": np.ones((2, 3))})


def test_unknown_cells_of_test_rows_are_neither_probed_nor_scored():
    values = Z.values.copy()
    values[RNG.random(values.shape) < 0.1] = np.nan
    records = evaluate(Matrix(values, Z.tasks, Z.example_ids), TASKS, **PROTOCOL)
    assert all(np.isfinite(r["value"]) for r in lines(records, metric="rmse"))


def test_more_probes_than_leave_something_to_predict_are_refused():
    with pytest.raises(LetheError, match=r"completion.probes: 90 of 90 .*\[5, 90\]"):
        evaluate(Z, TASKS, ["column_mean"], [5, 90], [0], 0.5)
    most = {"probe_choice": ["random", "leverage"]}
    assert {r["k"] for r in evaluate(Z, TASKS, ["column_mean"], [89], [0], 0.5, **most)} == {89}


def test_a_test_task_of_which_nothing_is_known_is_refused_by_name():
    values = Z.values.copy()
    values[Z.tasks.index("t7")] = np.nan
    with pytest.raises(LetheError, match="task 't7': no cell"):
        evaluate(Matrix(values, Z.tasks, Z.example_ids), TASKS, **PROTOCOL)


def test_metrics_of_many_rows_are_those_of_each():
    truth, predicted = RNG.normal(size=(5, 40)), RNG.normal(size=(5, 40))
    together = score_rows(truth, predicted, 0.2)
    for i in range(5):
        np.testing.assert_allclose(score_rows(truth[[i]], predicted[[i]], 0.2)[0], together[i])


def test_metrics_of_a_perfect_and_of_a_reversed_prediction():
    truth = np.arange(200.0)[None]
    perfect = dict(zip(METRICS, score_rows(truth, truth, 150.5)[0], strict=True))
    assert perfect == {**dict.fromkeys(METRICS, 1), "rmse": 0, "mae": 0}
    reverse = dict(zip(METRICS, score_rows(truth, -truth, 150.5)[0], strict=True))
    assert (reverse["spearman"], reverse["auc"], reverse["f1"]) == (-1, 0, 0)
    assert reverse["top_1_percent"] == reverse["top_10_percent"] == 0


def test_a_large_z_is_scored_on_a_part_of_its_examples(monkeypatch, caplog):
    complete = evaluate(Z, TASKS, **PROTOCOL)
    monkeypatch.setattr(evaluation, "LEAST_COLUMNS", 60)
    monkeypatch.setattr(evaluation, "SCORED_CELLS", 10)
    domains = [f"d{j % 3}" for j in range(90)]
    associations = {"text": VALUES * 2 + 1}
    sampled = evaluate(Z, TASKS, **PROTOCOL, associations=associations, domains=domains)
    assert "Z has 90 examples" in caplog.text and "on 60 of them" in caplog.text
    head = {"split": "in_domain", "k": 5, "seed": "all", "metric": "rmse"}
    (all_columns,) = lines(complete, method="column_mean", **head)
    (some_columns,) = lines(sampled, method="column_mean", **head)
    assert some_columns["value"] == pytest.approx(all_columns["value"], rel=0.3)
    # The association is Z in other units, so its columns must have been drawn like those of Z.
    (text,) = lines(sampled, method="text", **head)
    assert text["value"] < 1e-5


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"methods": ["gaussian", "logistic_fa"]}, "completion.methods: logistic_fa needs"),
        ({"probe_choice": ["a_optimal_logistic"]}, "completion.probe_choice: a_optimal_logistic"),
    ],
)
def test_logistic_methods_of_a_matrix_in_nats_are_refused(changes, part):
    with pytest.raises(LetheError, match=f"{part}.*this Z holds -"):
        evaluate(Z, TASKS, **(PROTOCOL | changes))


def test_every_left_out_group_has_lines_of_its_own_that_pool_to_out_of_domain():
    records = evaluate(Z, TASKS, **PROTOCOL)
    head = {"method": "gaussian", "k": 5, "seed": "all", "metric": "spearman"}
    (pooled,) = lines(records, split="out_of_domain", **head)
    values = []
    weights = []
    for group in ("g0", "g1", "g2"):
        (line,) = lines(records, split=f"out_of_domain:{group}", **head)
        values.append(line["value"])
        weights.append(sum(task.group == group for task in TASKS.values()))
    assert np.average(values, weights=weights) == pytest.approx(pooled["value"])
    assert {r["seed"] for r in records if ":" in r["split"]} == {"all"}


def test_coverage_by_task_lies_at_least_as_far_from_the_level_as_their_mean():
    records = lines(evaluate(Z, TASKS, **PROTOCOL), split="in_domain", method="gaussian", k=20)
    values = {(r["seed"], r["metric"]): r["value"] for r in records}
    for seed in ("0", "1"):
        distance = abs(values[seed, "coverage_90"] - 0.9)
        assert values[seed, "coverage_90_deviation"] >= distance - 1e-12


def test_means_of_tasks_and_domains_are_scored_with_intervals():
    domains = [f"d{j % 3}" for j in range(90)]
    records = evaluate(Z, TASKS, **PROTOCOL, domains=domains)
    head = {"split": "out_of_domain", "method": "gaussian", "k": 20, "seed": "all"}
    values = {r["metric"]: r["value"] for r in lines(records, **head)}
    assert 0 < values["task_mean_error"] < values["domain_mean_error"] < 0.5
    for metric in ("task_mean_coverage_90", "domain_mean_coverage_90"):
        assert 0.75 <= values[metric] <= 1
    assert values["task_mean_width_90"] < values["domain_mean_width_90"] < values["width_90"]
    without = {r["metric"] for r in evaluate(Z, TASKS, **PROTOCOL)}
    assert "task_mean_error" in without and "domain_mean_error" not in without


def test_the_experiment_knows_all_methods_and_choices_of_a_z_of_0s_and_1s():
    assert set(LOGISTIC) == {*BINARY, *BINARY_CHOICES}
