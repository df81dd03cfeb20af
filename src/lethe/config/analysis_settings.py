"""Settings of the analyses of Z, and of matrices that you measured elsewhere."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from lethe.config.settings import (
    NO_TRUTH_VALUE,
    Location,
    Name,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Seeds,
    Settings,
    refuse_repeated_values,
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
    "gaussian_local",
    "logistic_mf",
    "logistic_fa",
    "logistic_stack",
]
# Methods and choices of probes that need a Z of 0s and 1s.
LOGISTIC = ("logistic_mf", "logistic_fa", "logistic_stack", "a_optimal_logistic")
ModelOfExperiment = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$"
    ),
]
# Former name of a method -> the one that replaced it.
REPLACED_METHODS = {"logistic_foldin": "logistic_fa"}
ProbeChoice = Literal["random", "stratified", "leverage", "a_optimal", "a_optimal_logistic"]


class MFSettings(Settings):
    """Matrix factorisation with fold-in. A setting that is null is chosen by leave-one-task-out."""

    rank: PositiveInt | None = Field(None, description="Number of factors.")
    ridge: Positive | None = Field(None, description="Weight of the ridge penalty on factors.")


class KNNSettings(Settings):
    """Weighted mean of the nearest training tasks."""

    k: PositiveInt = Field(40, description="Number of nearest training tasks, at most all of them.")
    similarity: Literal["msd", "pearson", "scaled"] = Field(
        "msd", description="How similarity of two tasks is measured; msd is the paper's."
    )


class CompletionSettings(Settings):
    """How the forgetting of new tasks is predicted, and how the predictions are scored."""

    methods: Annotated[list[CompletionMethod], Field(min_length=1)] = Field(
        list(COMPLETION_METHODS), description="Methods that are compared."
    )
    probes: Annotated[list[PositiveInt], Field(min_length=1)] = Field(
        [5, 10, 30, 100],
        description="Numbers of upstream examples measured on a new task; each is scored.",
    )
    seeds: Seeds = Field(
        list(range(10)), description="Seeds of the random draws of probes; scores are their means."
    )
    probe_choice: Annotated[list[ProbeChoice], Field(min_length=1)] = Field(
        ["random", "a_optimal"],
        description="How probes are chosen. Random probes are always scored. The other choices "
        "are made in one half of the examples and scored in the other half; their lines in the "
        "tables are named `<choice>_half`.",
    )
    threshold: Annotated[float, NO_TRUTH_VALUE] = Field(
        0.1,
        allow_inf_nan=False,
        description="Nats. An example whose loss rises by more counts as forgotten (F1, AUC).",
    )
    sibling: ModelOfExperiment | None = Field(
        None,
        description="Another model that learned the same tasks and was scored on the same "
        "examples, as <experiment>/<model>. The method gaussian_sibling completes the difference "
        "from its rows (docs/reference/completion-methods.md).",
    )
    prior: ModelOfExperiment | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Another model, such as a smaller one of the same family, that was scored on "
        "the same examples, as <experiment>/<model>. The method gaussian_prior shrinks the mean "
        "and covariance of the training rows towards those of its rows. It needs no row of a new "
        "task on that model (docs/reference/completion-methods.md).",
    )
    embeddings: Literal["text_encoder", "representation"] | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Embeddings of the upstream examples that the method gaussian_embeddings "
        "reads. They must be in similarity.associations.",
    )
    precision_tasks: list[PositiveInt] = Field(
        [],
        exclude_if=lambda value: not value,
        description="Numbers of training tasks for the curve of precision: how many probes and "
        "training tasks a wanted precision needs. The number of all others is added. Empty: no "
        "such table and figure.",
    )
    mf: MFSettings = Field(MFSettings(), description="Settings of the method mf.")
    knn: KNNSettings = Field(KNNSettings(), description="Settings of the method knn.")

    def options(self) -> dict[str, dict]:
        """Keyword arguments of each method that has settings, by the method's name."""
        return {"mf": self.mf.model_dump(), "knn": self.knn.model_dump()}

    @field_validator("methods", mode="before")
    @classmethod
    def _no_former_names(cls, methods):
        for name in methods if isinstance(methods, list) else []:
            if isinstance(name, str) and name in REPLACED_METHODS:
                raise ValueError(
                    f"the method {name} was replaced by {REPLACED_METHODS[name]}; write "
                    f"{REPLACED_METHODS[name]} instead"
                )
        return methods

    @model_validator(mode="after")
    def _no_duplicates(self):
        refuse_repeated_values(
            self, "methods", "probes", "seeds", "probe_choice", "precision_tasks"
        )
        return self


OwnTexts = Annotated[
    Location | None,
    Field(
        description="Texts and domains of the examples, for the report: a .csv file with the "
        "columns example_id, domain and text, or a .parquet pool of `lethe pool`."
    ),
]


class MatrixSettings(Settings):
    """A matrix Z that you measured elsewhere, in place of models (docs/how-to/own-matrix.md)."""

    path: Location = Field(description="The file of Z: .npy, .csv or .parquet.")
    name: Name = Field("own", description="Names the folder of its results.")
    layout: Literal["tasks_in_rows", "tasks_in_columns"] = Field(
        description="Whether tasks are rows or columns. It is never guessed from the shape."
    )
    examples: Location | None = Field(
        None, description="File with one example id per line, if `path` itself holds no ids."
    )
    texts: OwnTexts = None


class MatricesSettings(Settings):
    """A folder of .npy matrices, each with a .meta naming its rows (docs/how-to/own-matrix.md)."""

    folder: Location = Field(description="Every .npy file in it is a Z and gives its name.")
    only: list[Name] = Field([], description="Names of the matrices to read. Empty: all of them.")
    texts: OwnTexts = None


class PlanSettings(Settings):
    """Short trials that estimate the experiment's cost, and prices (docs/how-to/plan.md)."""

    steps: PositiveInt = Field(4, description="Training steps that are timed.")
    examples: PositiveInt = Field(64, description="Upstream examples whose scoring is timed.")
    gpu_hour: NonNegative | None = Field(None, description="Price of one hour of one GPU.")
    core_hour: NonNegative | None = Field(
        None, description="Price of one hour of one CPU core, for models that run without a GPU."
    )
    currency: Annotated[str, StringConstraints(pattern=r"^\w{1,8}$")] = Field(
        "USD", description="Currency of the prices."
    )


class NoiseSettings(Settings):
    """Repeats of a few rows, which show the noise of Z (docs/explanation/noise-and-rank.md)."""

    tasks: Annotated[list[Name], Field(min_length=1)] = Field(
        description="Tasks whose rows are repeated."
    )
    trainings: PositiveInt = Field(
        2, description="Further trainings per task, each with its own seed."
    )
    measurements: NonNegativeInt = Field(
        1, description="Further scorings per training, with differently composed batches."
    )

    @model_validator(mode="after")
    def _no_duplicates(self):
        refuse_repeated_values(self, "tasks")
        return self


class TransferSettings(Settings):
    """Prediction of one model's rows from another model's Z; needs at least two models."""

    own_rows: Annotated[list[PositiveInt], Field(min_length=1)] = Field(
        [2, 5, 10],
        description="Numbers of rows of its own that the target model has; the others are "
        "predicted.",
    )
    probes: Annotated[list[PositiveInt], Field(min_length=1)] = Field(
        [10, 30], description="Numbers of probes per predicted row."
    )
    seeds: Seeds = Field([0, 1, 2], description="Seeds of the draws of rows and probes.")

    @model_validator(mode="after")
    def _no_duplicates(self):
        refuse_repeated_values(self, "own_rows", "probes", "seeds")
        return self
