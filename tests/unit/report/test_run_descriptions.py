from lethe.config.replay_settings import Replay
from lethe.report.run_descriptions import describe_runs

REPLAY = {
    "strategies": ["none", "random", "gaussian", "oracle", "balanced", "coverage", "perplexity"]
    + ["importance"],
    "objective": "kl",
    "ratio": 0.125,
    "variants": {
        "random-text": {"strategy": "random", "objective": "text"},
        "prompt-kl": {"strategy": "none", "recipe": {"prompt_kl": 1.0}},
        "slow": {"strategy": "none", "recipe": {"lr": 1.5e-4}},
        "averaged": {"strategy": "none", "interpolate": 0.5},
    },
}


def test_every_run_is_described_by_its_examples_objective_and_changes():
    runs = describe_runs(Replay.model_validate(REPLAY))
    assert runs["no replay"] == "no replay"
    assert runs["random"] == "KL to the base model on random examples"
    assert runs["Gaussian"] == "KL to the base model on examples predicted to be forgotten"
    assert runs["coverage"] == runs["Gaussian"]
    weighted = "KL to the base model on examples drawn and weighted by their predicted forgetting"
    assert runs["importance sampling"] == weighted
    assert runs["oracle"].endswith("true forgetting, which only a finished fine-tune shows")
    assert runs["highest loss"] == "KL to the base model on examples drawn by highest loss"
    assert runs["random-text"] == "the text of random examples"
    prompts = "no replay; KL to the base model on the prompts of the new examples"
    assert runs["prompt-kl"] == prompts
    assert runs["slow"] == "no replay; changes of the recipe: lr 0.00015"
    assert runs["averaged"].startswith("no replay; afterwards the weights are averaged")


def test_each_share_of_a_list_is_described():
    line = {"strategy": "none", "interpolate": [0.5, 1.0]}
    runs = describe_runs(Replay.model_validate(REPLAY | {"variants": {"line": line}}))
    assert "line" not in runs
    assert runs["line-0.5"].startswith("no replay; afterwards the weights are averaged")
