import re
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from lethe.config import schema
from lethe.config.model_settings import ModelSettings

ROOT = Path(__file__).parents[3]
SCHEMA = ROOT / "schemas/experiment.schema.json"


def test_the_schema_is_that_of_the_settings():
    assert SCHEMA.read_text("utf-8") == schema.schema_text(), (
        "run `make schema` and commit the file"
    )


def test_every_setting_is_described():
    definitions = schema.Experiment.model_json_schema()["$defs"]
    undocumented = [name for name, part in definitions.items() if not part.get("description")]
    for name, part in definitions.items():
        for key, setting in part.get("properties", {}).items():
            if not setting.get("description"):
                undocumented.append(f"{name}.{key}")
    assert undocumented == []


def every_section(section=schema.Experiment, found=None):
    """The experiment's settings and all classes of settings below them."""
    found = {} if found is None else found
    found[section] = None
    for field in section.model_fields.values():
        for part in every_part(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel) and part not in found:
                every_section(part, found)
    return list(found)


def every_part(annotation):
    """A type and the types that it is composed of."""
    return [annotation, *chain.from_iterable(every_part(part) for part in get_args(annotation))]


def test_no_number_takes_a_truth_value():
    """YAML reads yes and on as true, and pydantic would read true as 1."""
    sections = every_section()
    assert len(sections) > 30
    taken = []
    for section in sections:
        for key, field in section.model_fields.items():
            if bool in every_part(field.annotation) or Any in every_part(field.annotation):
                continue
            kind = field.annotation
            for constraint in field.metadata:
                kind = Annotated[kind, constraint]
            for value in (True, [True], {"a": True}):
                with suppress(ValidationError):
                    TypeAdapter(kind).validate_python(value)
                    taken.append(f"{section.__name__}.{key}: {value}")
    assert taken == []


def test_the_settings_for_large_models_in_the_guide_are_valid():
    text = (ROOT / "docs/how-to/large-models.md").read_text("utf-8")
    entries = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.S)]
    models = {name: model for entry in entries for name, model in entry.items()}
    assert set(models) == {"olmo-7b", "olmo2-13b"}
    for model in models.values():
        TypeAdapter(ModelSettings).validate_python(model)
