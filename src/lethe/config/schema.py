"""The settings as JSON schema, for editors; `python -m lethe.config.schema FILE` writes it."""

import json
import sys
from pathlib import Path

from lethe.config import Experiment


def schema_text() -> str:
    """Text of schemas/experiment.schema.json."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema | Experiment.model_json_schema(), indent=1) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(schema_text(), "utf-8")
