"""Which experiment is this? Typed, documented settings; loading, checks and the task table.

One YAML file is one experiment; `lethe.config.loading.load_experiment` reads it. Unknown keys are
errors, so a misspelt setting never falls back silently to its default.
schemas/experiment.schema.json is generated from these classes. This wing may import no other.
"""

from typing import Any

from pydantic import Field, model_validator

from lethe.config.analysis_settings import (
    CompletionSettings,
    MatricesSettings,
    MatrixSettings,
    NoiseSettings,
    PlanSettings,
    TransferSettings,
)
from lethe.config.data_settings import Source, TaskExamples, Upstream
from lethe.config.model_settings import ModelSettings, Recipe, Scoring
from lethe.config.replay_settings import Replay
from lethe.config.sequence_settings import Sequences
from lethe.config.settings import Location, Name, NonNegativeInt, Seed, Settings
from lethe.config.similarity_settings import Similarity

# Most forgotten examples per row whose token losses are stored.
TOKEN_EXAMPLES = 20


class Experiment(Settings):
    """One complete experiment."""

    experiment: Name = Field(description="Names the experiment's folder under results/.")
    seed: Seed = Field(0, description="Seed of the draws of examples and of their splits.")
    tasks: Location = Field(description="CSV table of the tasks: name, group, source, split.")
    leave_out: list[Name] = Field(
        [],
        description="Tasks of the table that are left out of everything, such as one that cannot "
        "be measured. The report names them, and so does left_out.csv.",
    )
    sources: dict[Name, Source] = Field(
        {}, description="Sources of examples. Tasks and domains name them as <key>:<where>."
    )
    upstream: Upstream | None = Field(None, description="Examples whose forgetting is measured.")
    models: dict[Name, ModelSettings] = Field({}, description="Models that are measured, by name.")
    matrix: MatrixSettings | None = Field(None, description="Your own Z, in place of models.")
    matrices: MatricesSettings | None = Field(
        None, description="A folder of your own matrices, in place of models."
    )
    recipe: Recipe = Field(Recipe(), description="How models are fine-tuned on a task.")
    task_examples: TaskExamples = Field(TaskExamples(), description="Examples per task.")
    scoring: Scoring = Field(Scoring(), description="How losses are measured.")
    token_examples: NonNegativeInt = Field(
        TOKEN_EXAMPLES,
        # Reports of older runs recorded all settings, and stay up to date without this one.
        exclude_if=lambda count: count == TOKEN_EXAMPLES,
        description="Most forgotten examples per row whose token losses are stored for the report; "
        "0: none. A change reruns no finished row.",
    )
    prediction_changes: bool = Field(
        False,
        exclude_if=lambda value: not value,
        description="Also compare each fine-tuned model's predictions with the base model's, token "
        "by token: KL, most probable words, entropies (docs/explanation/forgetting.md). Rows "
        "without them are measured again.",
    )
    allow_mixed_machines: bool = Field(
        False,
        description="Allow rows from different versions of torch or transformers, or from "
        "different devices, in one Z.",
    )
    completion: CompletionSettings = Field(
        CompletionSettings(), description="Prediction of the forgetting of new tasks."
    )
    noise: NoiseSettings | None = Field(None, description="Repeats of a few rows.")
    transfer: TransferSettings = Field(
        TransferSettings(), description="Prediction of one model's rows from another model's Z."
    )
    replay: Replay | None = Field(None, description="Replay of upstream examples.")
    similarity: Similarity | None = Field(None, description="Baselines that read the examples.")
    sequences: Sequences | None = Field(
        None, description="Fine-tunes on one task after the other, along orders of tasks."
    )
    plan: PlanSettings = Field(PlanSettings(), description="Estimate of the experiment's cost.")

    @property
    def own_texts(self) -> str | None:
        """File of the texts beside matrices that were measured elsewhere; None if there is none."""
        own = self.matrix or self.matrices
        return own.texts if own else None

    @model_validator(mode="before")
    @classmethod
    def _is_a_mapping(cls, data: Any):
        if not isinstance(data, dict):
            raise ValueError(f"an experiment is a mapping of keys, not {type(data).__name__}")
        return data
