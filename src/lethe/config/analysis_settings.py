"""Settings of the analyses of Z, and of a matrix of the user's own."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, StringConstraints, model_validator

from lethe.config.settings import (
    Name,
    NonNegative,
    Positive,
    Seeds,
    Settings,
    no_value_twice,
)

COMPLETION_METHODS = ("random", "column_mean", "additive", "knn", "mf", "gaussian")
CompletionMethod = Literal[
    "random",
    "constant",
    "column_mean",
    "additive",
    "affine",
    "knn",
    "mf",
    "soft_impute",
    "gaussian",
    "logistic_mf",
    "logistic_foldin",
]
ProbeChoice = Literal["random", "stratified", "leverage", "a_optimal"]


class MF(Settings):
    """Matrix factorisation by fold-in; what is not given is chosen by leave-one-task-out."""

    rank: PositiveInt | None = None
    ridge: Positive | None = None


class KNN(Settings):
    """Nearest training tasks; `msd` is the paper's similarity."""

    k: PositiveInt = 40
    similarity: Literal["msd", "pearson", "scaled"] = "msd"


class Completion(Settings):
    """How the forgetting of unseen tasks is predicted and how that is scored."""

    methods: Annotated[list[CompletionMethod], Field(min_length=1)] = list(COMPLETION_METHODS)
    probes: Annotated[list[PositiveInt], Field(min_length=1)] = [5, 10, 30, 100]
    seeds: Seeds = list(range(10))
    probe_choice: Annotated[list[ProbeChoice], Field(min_length=1)] = Field(
        ["random"],
        description="How probes are chosen; random ones are always scored. Others are chosen in "
        "one half of the examples and scored in the other, lines `<choice>_half`.",
    )
    threshold: float = Field(0.1, description="Nats; more is counted as forgotten (F1, AUC).")
    mf: MF = MF()
    knn: KNN = KNN()

    def options(self) -> dict[str, dict]:
        """What the methods are made with, by name."""
        return {"mf": self.mf.model_dump(), "knn": self.knn.model_dump()}

    @model_validator(mode="after")
    def _no_duplicates(self):
        no_value_twice(self, "methods", "probes", "seeds", "probe_choice")
        return self


class Matrix(Settings):
    """A Z of the user's own instead of models: .npy, .csv or .parquet (docs/own-matrix.md)."""

    path: str
    name: Name = "own"
    layout: Literal["tasks_in_rows", "tasks_in_columns"] = Field(
        description="Which way the tasks run; always said, never guessed from the shape."
    )
    examples: str | None = Field(
        None, description="Names file, one example id a line, if `path` holds no ids itself."
    )


class Matrices(Settings):
    """A folder of Zs as .npy, each with a .meta that names its rows (docs/own-matrix.md)."""

    folder: str = Field(description="Every .npy in it is a Z, named by its file.")
    only: list[Name] = Field([], description="Names of those to take; none: all of them.")


class Plan(Settings):
    """What is tried to estimate the experiment's cost, and prices (docs/plan.md)."""

    steps: PositiveInt = Field(4, description="Steps of training that are timed.")
    examples: PositiveInt = Field(64, description="Upstream examples that are scored.")
    gpu_hour: NonNegative | None = Field(None, description="Price of an hour of one GPU.")
    core_hour: NonNegative | None = Field(
        None, description="Price of an hour of one core, for models that have no GPU."
    )
    currency: Annotated[str, StringConstraints(pattern=r"^\w{1,8}$")] = "USD"


class Noise(Settings):
    """Repeats of a few rows, to tell what of Z is noise (docs/noise-and-rank.md)."""

    tasks: Annotated[list[Name], Field(min_length=1)]
    trainings: Annotated[int, Field(ge=1)] = Field(
        2, description="Further trainings of each task, each with a seed of its own."
    )
    measurements: Annotated[int, Field(ge=0)] = Field(
        1, description="Further scorings of each of them, batched otherwise."
    )

    @model_validator(mode="after")
    def _no_duplicates(self):
        no_value_twice(self, "tasks")
        return self


class Transfer(Settings):
    """Rows of one model predicted from another's Z; made when there are two models or more."""

    own_rows: Annotated[list[PositiveInt], Field(min_length=1)] = Field(
        [2, 5, 10], description="Rows of its own that the target model has; others are left out."
    )
    probes: Annotated[list[PositiveInt], Field(min_length=1)] = [10, 30]
    seeds: Seeds = [0, 1, 2]

    @model_validator(mode="after")
    def _no_duplicates(self):
        no_value_twice(self, "own_rows", "probes", "seeds")
        return self
