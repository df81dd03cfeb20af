import re
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from lethe.config import schema
from lethe.config.model_settings import ModelSettings

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / "schemas/experiment.schema.json"


def test_the_schema_is_that_of_the_settings():
    assert SCHEMA.read_text("utf-8") == schema.schema_text(), (
        "run `make schema` and commit the file"
    )


def test_every_setting_whose_name_does_not_say_it_all_is_described():
    definitions = schema.Experiment.model_json_schema()["$defs"]
    undocumented = [name for name, part in definitions.items() if not part.get("description")]
    assert undocumented == []


def test_the_settings_for_large_models_in_the_guide_are_valid():
    text = (ROOT / "docs/how-to/large-models.md").read_text("utf-8")
    entries = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    models = {name: model for entry in entries for name, model in entry.items()}
    assert set(models) == {"olmo-7b", "olmo2-13b"}
    for model in models.values():
        TypeAdapter(ModelSettings).validate_python(model)
