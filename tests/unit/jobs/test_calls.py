import json
from pathlib import Path

import pytest

from lethe.config.model_settings import Recipe, Scoring
from lethe.errors import LetheError
from lethe.jobs import calls


def job(**arguments):
    """A function of a script, as a rule's call names it."""


def test_paths_and_settings_come_back_as_what_they_were():
    arguments = {
        "recipe": Recipe(steps=7, lr=1e-4, group_steps={"g": 9}),
        "scoring": Scoring(max_tokens=9),
        "row": Path("rows/a.parquet"),
        "files": [Path("a"), Path("b")],
        "seed": 3,
        "weights": None,
    }
    request = json.dumps(calls.to_json(job, arguments))
    call = calls.from_json(request)
    assert call["arguments"] == arguments
    assert call["function"].__name__ == "job"


@pytest.mark.parametrize(
    "kind", ["os:environ", "lethe.config.schema:schema_text", "lethe.files:Path"]
)
def test_only_settings_of_an_experiment_are_made_from_a_call(kind):
    request = calls.to_json(job, {"x": 1})
    request["arguments"]["x"] = {"__settings__": kind, "values": {}}
    with pytest.raises(LetheError, match="no settings"):
        calls.from_json(json.dumps(request))
