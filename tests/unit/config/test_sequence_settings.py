import copy

import pytest
from helpers.experiment import TINY, make_experiment

from lethe.config.loading import load_experiment
from lethe.config.sequence_settings import SequenceRun, Sequences
from lethe.errors import ExperimentError

ORDERS = {"a": ["add", "reverse"], "b": ["reverse", "add"]}
VARIANTS = {
    "kl": {"strategy": "random", "objective": "kl", "dose": "token"},
    "line": {"strategy": "none", "interpolate": [0.5, 1]},
    "during": {"strategy": "online"},
    "memory": {"strategy": "none", "recipe": {"method": "memory", "memory": {}}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment")
    make_experiment(path)
    return path


def load(folder, replay=True, **section):
    config = copy.deepcopy(TINY) | {"sequences": {"orders": ORDERS} | section}
    if replay:
        config["replay"]["variants"] = VARIANTS
    else:
        del config["replay"]
    return load_experiment(config, folder)


def test_the_reference_is_the_first_run_without_replay(folder):
    runs = {"kl": {"replay": "kl"}, "plain": {"replay": "none"}}
    assert load(folder, runs=runs).settings.sequences.reference_run == "plain"
    runs = {"kl": {"replay": "kl"}, "random": {"replay": "random"}}
    assert load(folder, runs=runs).settings.sequences.reference_run == "kl"


def test_orders_are_followed_without_replay_unless_runs_are_given(folder):
    sequences = load(folder, replay=False).settings.sequences
    assert sequences.runs == {"none": SequenceRun()}
    assert sequences.orders_of("none") == ORDERS
    assert sequences.of_models(["olmo", "pythia"]) == ["olmo", "pythia"]
    assert not sequences.replay_run("none", None).replays
    assert sequences.multitask_order("b") == "a"


def test_training_tasks_of_orders_that_a_run_does_not_follow_are_no_reason_to_refuse_it(folder):
    orders = {"a": ["add", "double"], "b": ["reverse"]}
    runs = {"guided": {"replay": "additive", "orders": ["b"]}}
    assert load(folder, orders=orders, runs=runs).settings.sequences.runs


def test_a_run_may_follow_some_orders_only(folder):
    runs = {"none": {}, "random": {"replay": "random", "earlier": 0.5, "orders": ["b"]}}
    sequences = load(folder, runs=runs, models=["pythia"]).settings.sequences
    assert sequences.orders_of("random") == {"b": ORDERS["b"]}
    assert sequences.of_models(["olmo", "pythia"]) == ["pythia"]
    assert sequences.replay_run("random", load(folder).settings.replay).replays


def test_the_section_survives_its_way_through_json(folder):
    sequences = load(folder, epochs={"add": 2.5}).settings.sequences
    assert Sequences(**sequences.model_dump(mode="json")) == sequences


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"orders": {}}, "sequences.orders: "),
        ({"epochs": {"add": 1e30}}, "sequences.epochs.add: "),
        ({"orders": {"a": []}}, "sequences.orders.a: "),
        ({"orders": {"a": ["add", "ad"]}}, "sequences.orders.a: 'ad' is not in the task table; "),
        ({"orders": {"a": ["add", "add"]}}, "orders.a: holds 'add' twice"),
        ({"orders": {"a": ["add"], "b": ["add"]}}, "orders.b: is in the same order as 'a'"),
        ({"orders": {"../a": ["add"]}}, "sequences.orders.../a"),
        ({"orders": {"a/b": ["add"]}}, "sequences.orders.a/b"),
        ({"runs": {"../../up": {}}}, "sequences.runs."),
        ({"runs": {"x": {}, "y": {}}}, "runs.y: has the settings of 'x'"),
        ({"runs": {"x": {"replay": "randon"}}}, "sequences.runs.x.replay: 'randon' is neither"),
        ({"runs": {"x": {"orders": ["z"]}}}, "runs.x.orders: 'z' is none of orders: a, b"),
        (
            {"runs": {"x": {"earlier": 0.5}}},
            "sequences.runs.x.earlier: is 0.5, but 'none' replays nothing",
        ),
        ({"runs": {"x": {"earlier": 2}}}, "sequences.runs.x.earlier"),
        ({"runs": {"x": {"replay": "kl", "earlier": 1}}}, "x.earlier: objective kl would keep"),
        ({"runs": {"x": {"replay": "during", "earlier": 1}}}, "x.earlier: strategy online chooses"),
        ({"runs": {"x": {"replay": "line"}}}, "sequences.runs.x.replay: 'line' has several shares"),
        ({"runs": {"x": {"replay": "additive"}}}, "'add' of the order 'a' is a training task"),
        ({"runs": {"x": {"replay": "memory"}}}, "sequences.runs.x: a memory or a router stands"),
        ({"models": ["olma"]}, "sequences.models: 'olma' is no model of this experiment; did you"),
        ({"models": ["olmo", "olmo"]}, "models holds a value twice"),
        ({"epochs": {"upper": 2}}, "sequences.epochs.upper: is a task of no order"),
        ({"order": {}}, "sequences.order: "),
    ],
)
def test_a_bad_section_is_refused_with_its_key(folder, section, problem):
    with pytest.raises(ExperimentError) as error:
        load(folder, **section)
    assert problem in str(error.value)


def test_a_router_of_one_model_is_refused_unless_the_model_follows_no_order(folder):
    config = copy.deepcopy(TINY) | {"sequences": {"orders": ORDERS}}
    config["models"]["pythia"]["recipe"] = {"router": {}}
    with pytest.raises(ExperimentError, match="stands beside the weights of pythia"):
        load_experiment(config, folder)
    config["sequences"]["models"] = ["olmo"]
    load_experiment(config, folder)


def test_a_task_that_is_left_out_is_in_no_order(folder):
    config = copy.deepcopy(TINY) | {"leave_out": ["upper"]}
    config["sequences"] = {"orders": {"a": ["add", "upper"]}}
    with pytest.raises(ExperimentError, match="orders.a: 'upper' is left out by leave_out"):
        load_experiment(config, folder)


def test_changed_predictions_need_models(folder):
    config = {
        "experiment": "own",
        "tasks": "tasks.csv",
        "matrix": {"path": "tiny.yaml", "layout": "tasks_in_rows"},
        "prediction_changes": True,
    }
    with pytest.raises(ExperimentError, match="prediction_changes: a matrix has no model"):
        load_experiment(config, folder)


def test_sequences_need_models(folder):
    config = {
        "experiment": "own",
        "tasks": "tasks.csv",
        "matrix": {"path": "tiny.yaml", "layout": "tasks_in_rows"},
        "sequences": {"orders": ORDERS},
    }
    with pytest.raises(ExperimentError, match="sequences: a matrix has no model to train"):
        load_experiment(config, folder)


def test_every_task_may_be_predicted_where_replay_tests_all_tasks(folder):
    config = copy.deepcopy(TINY)
    config["replay"]["tasks"] = "all"
    runs = {"additive": {"replay": "additive"}}
    config["sequences"] = {"orders": ORDERS, "runs": runs}
    assert load_experiment(config, folder).settings.sequences.runs
