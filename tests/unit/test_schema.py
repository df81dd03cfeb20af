from pathlib import Path

from lethe import schema

SCHEMA = Path(__file__).parents[2] / "schemas/experiment.schema.json"


def test_the_schema_is_that_of_the_settings():
    assert SCHEMA.read_text("utf-8") == schema.text(), "run `make schema` and commit the file"


def test_every_setting_whose_name_does_not_say_it_all_is_described():
    definitions = schema.Experiment.model_json_schema()["$defs"]
    undocumented = [name for name, part in definitions.items() if not part.get("description")]
    assert undocumented == []
