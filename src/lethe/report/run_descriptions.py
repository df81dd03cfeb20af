"""Replay runs in words: which examples they replay, and what the training keeps of them."""

from lethe.config.replay_settings import Replay, ReplayRun
from lethe.report.figure_style import label_of

_EXAMPLES = {
    "random": "random examples",
    "balanced": "random examples, equally many of each domain",
    "importance": "examples drawn and weighted by their predicted forgetting",
    "oracle": "examples drawn by their true forgetting, which only a finished fine-tune shows",
}
_OBJECTIVES = {
    "text": "the text of",
    "kl": "KL to the base model on",
    "both": "the text of, and KL to the base model on,",
}


def describe_replay(run: ReplayRun) -> str:
    """Which examples a run replays and what the training keeps of them, for a sentence."""
    if run.strategy in _EXAMPLES:
        examples = _EXAMPLES[run.strategy]
    elif run.prediction_method is not None:
        examples = "examples predicted to be forgotten"
    else:
        examples = f"examples drawn by {label_of(run.strategy)}"
    return f"{_OBJECTIVES[run.objective]} {examples}"


def describe_run(run: ReplayRun) -> str:
    """What distinguishes a run: its replay, and the changes of its recipe and its weights."""
    parts = [describe_replay(run) if run.replays else "no replay"]
    changes = run.recipe.model_dump(exclude_unset=True)
    if changes.pop("prompt_kl", None):
        parts.append("KL to the base model on the prompts of the new examples")
    if run.interpolate is not None:
        parts.append("afterwards the weights are averaged with those of the base model")
    if changes:
        changed = ", ".join(f"{key} {_in_words(value)}" for key, value in changes.items())
        parts.append(f"changes of the recipe: {changed}")
    return "; ".join(parts)


def describe_runs(settings: Replay) -> dict[str, str]:
    """A description of each run that the tables of an experiment list, by its label."""
    return {label_of(run.name): describe_run(run) for run in settings.results()}


def _in_words(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
