import copy

import pytest
from helpers.experiment import TINY, make_experiment
from pydantic import ValidationError

from lethe.completion import METHODS
from lethe.config.loading import load_experiment
from lethe.config.model_settings import Recipe
from lethe.config.replay_settings import (
    PREDICTION_METHODS,
    STRATEGIES,
    Replay,
    ReplayRun,
    parameters_of_today,
)
from lethe.errors import ExperimentError

VARIANTS = {
    "random-text": {"strategy": "random", "objective": "text", "dose": "mixed"},
    "prompt": {"strategy": "none", "recipe": {"l2": 0.5, "max_epochs": None}},
    "wise-ft": {"strategy": "none", "interpolate": 0.75},
    "spread": {"strategy": "gaussian", "temperature": {"sd": 0.5}},
}
LINE = {"strategy": "none", "interpolate": [0.25, 1]}


def section(**changes):
    settings = {"strategies": ["none", "random", "gaussian", "oracle"], "variants": VARIANTS}
    return Replay(**settings | changes)


def test_a_run_has_the_sections_settings_and_the_changes_of_its_variant():
    replay = section(ratio=0.25, weight=2)
    assert replay.names == ["none", "random", "gaussian", "oracle", *VARIANTS]
    random = replay.resolve("random")
    assert (random.strategy, random.objective, random.dose) == ("random", "kl", "token")
    assert (random.weight, random.ratio) == (2, 0.25)
    text = replay.resolve("random-text")
    assert (text.strategy, text.objective, text.dose) == ("random", "text", "mixed")
    assert text.ratio == 0.25
    assert replay.resolve("spread").temperature.sd == 0.5
    assert replay.resolve("wise-ft").interpolate == 0.75
    with pytest.raises(KeyError, match=r"no replay run 'mf'; runs: none, random"):
        replay.resolve("mf")


def test_a_variant_changes_the_keys_of_the_recipe_that_it_gives_and_no_others():
    run = section().resolve("prompt")
    recipe = Recipe(steps=7, lr=1e-3)
    assert run.apply_to(recipe) == recipe.model_copy(update={"l2": 0.5, "max_epochs": None})
    assert section().resolve("random").apply_to(recipe) is recipe
    lora = {"strategy": "none", "recipe": {"method": "lora"}}
    with pytest.raises(ValidationError, match="lora go together"):
        section(variants={"lora": lora}).resolve("lora").apply_to(recipe)


def test_the_papers_replay_has_the_parameters_that_it_had_before_objectives_existed():
    """Finished runs must stay up to date."""
    paper = section(objective="text", dose="mixed", variants={})
    recorded = {"ratio": 1 / 32, "temperature": 0.1, "accounting": "add"}
    for name in paper.names:
        parameters = paper.resolve(name).parameters()
        of_today = parameters_of_today(name, recorded)
        assert list(parameters.items()) == list(of_today.items())
        assert parameters.items() <= recorded.items()


@pytest.mark.parametrize(
    ("strategy", "changes", "expected"),
    [
        ("none", {}, set()),
        ("random", {"draw": "top"}, {"ratio", "accounting"}),
        ("balanced", {}, {"ratio", "accounting"}),
        ("gaussian", {}, {"ratio", "accounting", "temperature"}),
        ("gaussian", {"draw": "top"}, {"ratio", "accounting", "draw"}),
    ],
)
def test_only_settings_that_play_a_part_are_recorded(strategy, changes, expected):
    """Another temperature repeats no random run, and another ratio none without replay."""
    strategies = ["none", "random", "balanced", "gaussian"]
    paper = {"objective": "text", "dose": "mixed", "strategies": strategies}
    parameters = Replay(**paper | changes).resolve(strategy).parameters()
    assert set(parameters) == expected
    recorded = {"ratio": 0.25, "temperature": 0.5, "accounting": "add"} | changes
    of_today = Replay(**paper | recorded).resolve(strategy).parameters()
    assert parameters_of_today(strategy, recorded) == of_today


@pytest.mark.parametrize("name", section().names)
def test_parameters_give_the_run_back(name):
    run = section().resolve(name)
    again = ReplayRun.from_parameters(name, run.parameters())
    assert again.parameters() == run.parameters()
    assert again.with_effect() | {"recipe": run.recipe_changes} == run.with_effect()


def test_the_section_survives_its_way_through_json():
    assert Replay(**section().model_dump(mode="json")) == section()


def test_a_run_names_the_prediction_that_it_reads():
    names = ["none", "random", "oracle", "mf", "domain", "coverage", "importance", "perplexity"]
    replay = Replay(strategies=names, prediction="additive")
    methods = [run.prediction_method for run in replay.runs()]
    assert methods == [None, None, None, "mf", *["additive"] * 3, None]
    assert replay.prediction_methods == ["mf", "additive"]


PHASED = {
    "strategies": ["random", "online", "closed_loop"],
    "probes": 12,
    "variants": {
        "late": {"strategy": "online", "online_after": 0.5, "prediction": "mf"},
        "once": {"strategy": "closed_loop", "closed_loop_after": [0.2], "objective": "both"},
    },
}


def test_a_run_that_chooses_while_it_trains_records_its_probes_and_no_other_run_does():
    replay = Replay(**PHASED)
    assert "probes" not in replay.resolve("random").parameters()
    online = replay.resolve("online").parameters()
    assert (online["probe_after"], online["probes"], online["probe_choice"]) == (
        [0.1],
        12,
        "a_optimal",
    )
    assert online["prediction"] == "gaussian"
    after = {name: replay.resolve(name).probe_after for name in replay.names}
    assert after["closed_loop"] == [0.25, 0.5, 0.75]
    assert (after["late"], after["once"], after["random"]) == ([0.5], [0.2], [])
    for name in replay.names:
        run = replay.resolve(name)
        again = ReplayRun.from_parameters(name, run.parameters())
        assert again.with_effect() == run.with_effect()
    assert all(replay.resolve(name).reads_training_rows for name in replay.names[1:])
    assert replay.prediction_methods == [], "the probes are those of the training"


def test_shares_of_other_strategies_do_not_change_a_finished_run():
    one, other = Replay(**PHASED), Replay(**PHASED, online_after=0.3)
    assert one.resolve("closed_loop").parameters() == other.resolve("closed_loop").parameters()
    assert one.resolve("random").parameters() == other.resolve("random").parameters()
    assert one.resolve("online").parameters() != other.resolve("online").parameters()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"online_after": 1}, "online_after"),
        ({"online_after": 0}, "online_after"),
        ({"closed_loop_after": []}, "closed_loop_after"),
        ({"closed_loop_after": [0.5, 1.0]}, "closed_loop_after"),
        ({"closed_loop_after": [0.5, 0.25]}, "is not in ascending order"),
        ({"closed_loop_after": [0.5, 0.5]}, "is not in ascending order"),
        (
            {"variants": {"v": {"strategy": "closed_loop", "closed_loop_after": [0.5, 0.25]}}},
            "variants.v.closed_loop_after: [0.5, 0.25] is not in ascending order",
        ),
        (
            {"variants": {"v": {"strategy": "random", "ratio": 0.5, "online_after": 0.2}}},
            "variants.v.online_after: plays no part in this run (strategy random, objective kl",
        ),
    ],
)
def test_probes_at_senseless_times_are_refused(changes, message):
    with pytest.raises(ValidationError) as error:
        Replay(**PHASED | changes)
    assert message in str(error.value)


def test_only_an_unchanged_fine_tune_of_seed_0_equals_the_tasks_own_row():
    replay = section()
    equal = [name for name in replay.names if replay.resolve(name).equals_own_row(0)]
    assert equal == ["none"]
    assert not replay.resolve("none").equals_own_row(1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0}, "nats, {sd: number} or {effective_share: number}"),
        ({"temperature": {"sd": -1}}, "above 0"),
        ({"temperature": {"mean": 1}}, "above 0"),
        ({"dose": "mixed"}, "needs objective 'text'"),
        (
            {"variants": {"a": {"strategy": "importance", "objective": "text", "dose": "mixed"}}},
            "variants.a: strategy 'importance' weighs the replayed examples, and dose 'mixed'",
        ),
        ({"variants": {"oracle": {"strategy": "random", "ratio": 0.5}}}, "name of a strategy"),
        ({"variants": {"same": {"strategy": "random"}}}, "has the settings of 'random'"),
        ({"variants": {"a/b": {"strategy": "random"}}}, "String should match pattern"),
        ({"variants": {"empty": {"strategy": "random", "ratio": None}}}, "ratio: is null"),
        ({"variants": {"a": {"strategy": "none", "recipe": {"lrr": 1}}}}, "recipe.lrr"),
        ({"variants": {"a": {"strategy": "none", "recipe": {"seed": 1}}}}, "recipe.seed"),
        ({"variants": {"a": {"strategy": "none", "interpolate": 1.5}}}, "interpolate"),
        (
            {"variants": {"a": {"strategy": "none", "recipe": {"max_tokens": 9}}}},
            "recipe.max_tokens",
        ),
        ({"primary": "none"}, "primary: 'none' is what other runs are compared with"),
        ({"primary": "mf"}, "primary: 'mf' is no run of this section; its runs: "),
        (
            {"variants": {"line": LINE}, "primary": "line"},
            "primary: 'line' is no run of this section",
        ),
        ({"variants": {"line": LINE | {"interpolate": []}}}, "interpolate"),
        ({"variants": {"line": LINE | {"interpolate": [0.5, 0.5]}}}, "two runs have the name"),
        ({"variants": {"line": LINE, "a": LINE}}, "a-0.25: has the settings of 'line-0.25'"),
        # Keys that play no part in the run make no other run of it.
        *(
            ({"variants": {"a": {"strategy": "random", "ratio": 0.5} | keys}}, "plays no part")
            for keys in (
                *({"temperature": 5}, {"draw": "top"}, {"top_k": 50}, {"prediction": "mf"}),
                *({"mir_candidates": 5}, {"teacher": "stored", "objective": "text"}),
                {"weight": 2, "objective": "text", "dose": "mixed"},
            )
        ),
        ({"variants": {"a": {"strategy": "none", "ratio": 0.5}}}, "a.ratio: plays no part"),
        (
            {"variants": {"a": {"strategy": "gaussian", "draw": "top", "temperature": 5}}},
            "a.temperature: plays no part in this run (strategy gaussian, objective kl, dose "
            "token, draw top, teacher live); leave the key out",
        ),
        (
            {"variants": {"line": LINE, "line-1": {"strategy": "random", "ratio": 0.5}}},
            "two runs have the name 'line-1'",
        ),
        ({"advise": {"trade": []}}, "advise.trade"),
        ({"advise": {"trade": [1, 1]}}, "trade holds a value twice"),
        ({"advise": {"trade": [0]}}, "advise.trade"),
        ({"advise": {"runs": ["random", "oracle"]}}, "advise.runs: 'oracle' is no run"),
        ({"advise": {"runs": ["random"]}}, "advise.runs"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValidationError) as error:
        section(**changes)
    assert message in str(error.value)


def test_the_candidates_and_the_order_of_mir_are_recorded_where_they_differ():
    names = ["random", "mir", "mir_paper_code"]
    usual = Replay(strategies=names)
    assert not any("mir" in key for name in names for key in usual.resolve(name).parameters())
    changed = Replay(strategies=names, mir_candidates=10, mir_order="paper_code")
    parameters = changed.resolve("mir").parameters()
    assert (parameters["mir_candidates"], parameters["mir_order"]) == (10, "paper_code")
    assert "mir_candidates" not in changed.resolve("random").parameters()
    # It has an order of its own.
    assert "mir_order" not in changed.resolve("mir_paper_code").parameters()
    again = ReplayRun.from_parameters("mir", parameters)
    assert (again.mir_candidates, again.mir_order) == (10, "paper_code")


def test_the_correction_of_importance_sampling_is_recorded_where_it_differs():
    names = ["random", "importance"]
    assert (
        "importance_correction" not in Replay(strategies=names).resolve("importance").parameters()
    )
    half = Replay(strategies=names, importance_correction=0.5)
    parameters = half.resolve("importance").parameters()
    assert parameters["importance_correction"] == 0.5
    assert "importance_correction" not in half.resolve("random").parameters()
    assert ReplayRun.from_parameters("importance", parameters).importance_correction == 0.5
    for wrong in (-0.1, 1.1, True):
        with pytest.raises(ValidationError, match="importance_correction"):
            Replay(strategies=names, importance_correction=wrong)


def test_the_type_of_the_prompts_teacher_is_recorded_where_the_replays_is_stored():
    keys = {"teacher": "stored", "teacher_dtype": "bfloat16"}
    stored = Replay(strategies=["random"], **keys).resolve("random")
    assert "teacher_dtype" not in stored.parameters()
    parameters = stored.parameters(prompt_kl=True)
    assert parameters["teacher_dtype"] == "bfloat16"
    assert ReplayRun.from_parameters("random", parameters).teacher_dtype == "bfloat16"
    usual = Replay(strategies=["random"], teacher="stored").resolve("random")
    assert usual.parameters(prompt_kl=True) == usual.parameters()


def test_a_list_of_shares_is_one_job_and_a_run_per_share():
    replay = section(variants={"line": LINE}, advise={"runs": ["random", "line-0.25"]})
    assert replay.names[-1] == "line"
    names = [run.name for run in replay.results()]
    assert names == ["none", "random", "gaussian", "oracle", "line-0.25", "line-1"]
    assert [run.interpolate for run in replay.results()[-2:]] == [0.25, 1]
    run = replay.resolve("line")
    assert not run.equals_own_row(0)
    assert run.parameters()["interpolate"] == [0.25, 1]
    again = ReplayRun.from_parameters("line", run.parameters())
    assert [result.name for result in again.results()] == ["line-0.25", "line-1"]
    assert [advised.name for advised in replay.advised_runs()] == ["random", "line-0.25"]
    assert Replay(**replay.model_dump(mode="json")) == replay
    assert section(variants={"line": LINE}, primary="line-1").primary == "line-1"


def test_a_single_share_keeps_its_name_and_its_parameters():
    run = section().resolve("wise-ft")
    assert run.results() == [run]
    assert run.parameters()["interpolate"] == 0.75


def test_an_advice_lists_the_settings_that_play_a_part_in_a_run():
    replay = section(advise={"runs": ["none", "random-text", "wise-ft", "spread"]})
    described = {run.name: run.describe() for run in replay.advised_runs()}
    assert set(described) == {"none", "random-text", "wise-ft", "spread"}
    assert set(described["none"].values()) == {"none", None}
    assert described["random-text"]["objective"] == "text"
    assert described["random-text"]["temperature"] is None
    assert described["spread"]["temperature"] == "sd 0.5"
    assert described["wise-ft"]["changes"] == '{"interpolate": 0.75}'
    assert section().advised_runs() == []


def test_every_prediction_method_is_a_strategy_and_a_completion_method():
    assert set(PREDICTION_METHODS) <= set(STRATEGIES)
    assert set(PREDICTION_METHODS) <= set(METHODS)


def test_a_variant_whose_recipe_fits_no_model_is_refused_when_the_experiment_is_loaded(tmp_path):
    make_experiment(tmp_path)
    config = copy.deepcopy(TINY)
    config["replay"]["variants"] = {"small": {"strategy": "none", "recipe": {"micro_batch": 3}}}
    with pytest.raises(ExperimentError, match=r"replay\.variants\.small\.recipe: batch 4"):
        load_experiment(config, tmp_path)
