"""Which experiment is this? Typed, documented settings; loading, checks and the task table.

One YAML file is one experiment; `lethe.config.loading.load` reads it. Unknown keys are errors, so
a misspelt setting can never fall back silently to its default. schemas/experiment.schema.json is
generated from these classes. Imports no other wing.
"""

from typing import Annotated, Any

from pydantic import Field, model_validator

from lethe.config.analysis_settings import (
    Completion,
    Matrices,
    Matrix,
    Noise,
    Plan,
    Transfer,
)
from lethe.config.data_settings import Source, TaskExamples, Upstream
from lethe.config.model_settings import Model, Recipe, Scoring
from lethe.config.replay_settings import Replay
from lethe.config.settings import Name, Settings
from lethe.config.similarity_settings import Similarity


class Experiment(Settings):
    """One complete experiment."""

    experiment: Name = Field(description="Names the folder under results/.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Draws examples and splits.")
    tasks: str = Field(description="CSV table of the tasks: name, group, source, split.")
    sources: dict[Name, Source] = {}
    upstream: Upstream | None = None
    models: dict[Name, Model] = {}
    matrix: Matrix | None = None
    matrices: Matrices | None = None
    recipe: Recipe = Recipe()
    task_examples: TaskExamples = TaskExamples()
    scoring: Scoring = Scoring()
    allow_mixed_machines: bool = Field(
        False,
        description="Gather rows of other torch or transformers versions, or devices, into one Z.",
    )
    completion: Completion = Completion()
    noise: Noise | None = None
    transfer: Transfer = Transfer()
    replay: Replay | None = None
    similarity: Similarity | None = None
    plan: Plan = Plan()

    @model_validator(mode="before")
    @classmethod
    def _is_a_mapping(cls, data: Any):
        if not isinstance(data, dict):
            raise ValueError(f"an experiment is a mapping of keys, not {type(data).__name__}")
        return data
