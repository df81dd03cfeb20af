"""Settings of replay: which upstream examples are replayed, how many, and with which loss."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    create_model,
    model_serializer,
    model_validator,
)

from lethe.config.analysis_settings import ProbeChoice
from lethe.config.model_settings import Recipe
from lethe.config.settings import (
    NO_TRUTH_VALUE,
    FloatType,
    Fraction,
    Name,
    NonNegative,
    Positive,
    PositiveInt,
    Seeds,
    Settings,
    number_of,
    refuse_repeated_values,
)
from lethe.config.task_table import Task

Strategy = Literal[
    "none",
    "random",
    "balanced",
    "oracle",
    "column_mean",
    "additive",
    "knn",
    "mf",
    "gaussian",
    "gaussian_sibling",
    "domain",
    "coverage",
    "importance",
    "perplexity",
    "perplexity_median",
    "mir",
    "mir_measured",
    "mir_paper_code",
    "gradient",
    "gradient_matching",
    "online",
    "closed_loop",
]
PredictionMethod = Literal["column_mean", "additive", "knn", "mf", "gaussian"]
# Strategies that are named after the method whose prediction they draw by.
PREDICTION_METHODS = ("column_mean", "additive", "knn", "mf", "gaussian")
# Those that read other tasks only, and no cell of the task that they predict.
WITHOUT_PROBES = ("column_mean",)
# The strategy whose prediction also reads another model's rows (`completion.sibling`).
WITH_SIBLING = "gaussian_sibling"
# Strategies that work on the prediction of the method `replay.prediction`.
BUILT_ON_PREDICTION = ("domain", "coverage", "importance")
# Strategies that choose during the training, with the same method, from probes of the model.
DURING_TRAINING = ("online", "closed_loop")
# Strategies that read the task's measured row, which a user does not have before the fine-tune.
FROM_MEASURED_ROW = ("oracle", "mir_measured", "mir_paper_code")
# Strategies that read the inner products of the tasks' gradients with those of the examples.
FROM_GRADIENTS = ("gradient", "gradient_matching")
# Strategies that take one example per group of random candidates.
MIR = ("mir", "mir_measured", "mir_paper_code")
# Strategies in which `draw` and `temperature` play no part. All but random choose a set as a whole.
UNWEIGHTED = ("random", "balanced", "coverage", "importance", "gradient_matching", *MIR)
STRATEGIES = Strategy.__args__

Objective = Literal["text", "kl", "both"]
OBJECTIVES = Objective.__args__
Dose = Literal["step", "token", "mixed"]
Draw = Literal["softmax", "top"]
Accounting = Literal["add", "swap"]
Teacher = Literal["live", "stored"]
MirOrder = Literal["largest", "paper_code"]
Share = Annotated[float, Field(gt=0, le=1), NO_TRUTH_VALUE]
Shares = Annotated[list[Share], Field(min_length=1)]
ProbeShares = Annotated[list[Fraction], Field(min_length=1)]
Correction = Annotated[float, Field(ge=0, le=1), NO_TRUTH_VALUE]


class TemperatureBySpread(Settings):
    """A temperature that follows the spread of each task's scores."""

    sd: Positive = Field(description="Temperature in standard deviations of the row's scores.")


class TemperatureBySampleSize(Settings):
    """A temperature that gives the same effective sample size for each task."""

    effective_share: Positive = Field(
        description="Effective sample size of the weights, as a multiple of the number of draws. "
        "1: about as concentrated as the top k."
    )


def _one_kind_of_temperature(value: Any) -> Any:
    """Checks the shape before the three kinds are tried, so that an error names no kind twice."""
    if isinstance(value, Settings):
        return value
    number = value
    if isinstance(value, dict) and list(value) in (["sd"], ["effective_share"]):
        number = next(iter(value.values()))
    if not isinstance(number, bool):
        number = number_of(number)
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if not is_number or not 0 < number < float("inf"):
        raise ValueError(
            "must be a number of nats, {sd: number} or {effective_share: number}, above 0"
        )
    return value


Temperature = Annotated[
    Positive | TemperatureBySpread | TemperatureBySampleSize,
    BeforeValidator(_one_kind_of_temperature),
]

# Keys of the recipe that a variant cannot change. The first four say which library version, machine
# or seed made a run. The last two also cut the examples on which new-task loss is measured.
_FIXED_IN_VARIANTS = (
    "version",
    "processes",
    "seed",
    "keep_weights",
    "max_tokens",
    "truncation",
)


def _optional_keys_of_recipe() -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for key, field in Recipe.model_fields.items():
        if key not in _FIXED_IN_VARIANTS:
            kind: Any = field.annotation
            for constraint in field.metadata:
                kind = Annotated[kind, constraint]
            keys[key] = (kind | None, Field(None, description=field.description))
    return keys


class _Changes(Settings):
    """Settings that change others: only keys that are given count, and only they are dumped."""

    @model_serializer(mode="wrap")
    def _given_keys(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = serialise(self)
        return {key: value for key, value in values.items() if key in self.model_fields_set}


VariantRecipe = create_model(
    "VariantRecipe",
    __base__=_Changes,
    __module__=__name__,
    __doc__="Keys of the recipe that differ for one variant. Keys that are not given stay.",
    **_optional_keys_of_recipe(),
)


class Variant(_Changes):
    """A run that differs from the replay section in the keys given here."""

    strategy: Strategy = Field(description="How its replayed examples are chosen.")
    ratio: Fraction | None = Field(None, description="Replayed examples per new-task example.")
    objective: Objective | None = Field(None, description="Loss of the replayed examples.")
    weight: NonNegative | None = Field(None, description="Weight of that loss.")
    dose: Dose | None = Field(None, description="How that loss is combined with the new task's.")
    draw: Draw | None = Field(None, description="How examples are drawn by their scores.")
    temperature: Temperature | None = Field(None, description="Temperature of the softmax.")
    teacher: Teacher | None = Field(None, description="Source of the base model's distributions.")
    teacher_dtype: FloatType | None = Field(
        None, description="Type of the weights of a live teacher."
    )
    top_k: PositiveInt | None = Field(None, description="Words per token that are stored.")
    accounting: Accounting | None = Field(None, description="Replay adds steps or takes places.")
    prediction: PredictionMethod | None = Field(
        None,
        description="Method that the strategies domain, coverage, importance, online and "
        "closed_loop build on.",
    )
    online_after: Fraction | None = Field(
        None, description="Share of the steps after which the strategy online probes the model."
    )
    closed_loop_after: ProbeShares | None = Field(
        None, description="Shares of the steps after which closed_loop probes the model."
    )
    mir_candidates: PositiveInt | None = Field(
        None, description="Random candidates per draw of the mir strategies."
    )
    mir_order: MirOrder | None = Field(
        None, description="Which of its candidates a mir strategy replays."
    )
    importance_correction: Correction | None = Field(
        None, description="How far the weights of the strategy importance undo its draw."
    )
    recipe: VariantRecipe = Field(
        VariantRecipe(), description="Keys of the recipe that differ, such as l2 or lr."
    )
    interpolate: Share | Shares | None = Field(
        None,
        description="Share of the fine-tuned weights in a mean with the base model's, which is "
        "scored in place of the fine-tuned model (WiSE-FT). A list of shares is scored from one "
        "fine-tune, and each is a run named <variant>-<share>.",
    )


# The paper's replay. The workflow's parameters leave these values out, so that runs from before
# the settings existed stay up to date. `ReplayRun.from_parameters` puts them back, so never change
# one.
_PAPER_LOSS = {"objective": "text", "dose": "mixed"}
# The keys of the draw, with values for the runs that do not record them: of a draw, that of the
# paper; of the others any, because they play no part in such a run.
_DRAW = {"draw": "softmax", "ratio": 0.5, "temperature": 1.0, "accounting": "add"}
_USUAL_CANDIDATES = 30
_USUAL_ORDER = "largest"
_USUAL_CORRECTION = 1.0
# Strategy -> the settings that are for it, with their usual values. No other strategy reads them.
OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "mir": {"mir_candidates": _USUAL_CANDIDATES, "mir_order": _USUAL_ORDER},
    "mir_measured": {"mir_candidates": _USUAL_CANDIDATES, "mir_order": _USUAL_ORDER},
    # It has an order of its own.
    "mir_paper_code": {"mir_candidates": _USUAL_CANDIDATES},
    "importance": {"importance_correction": _USUAL_CORRECTION},
}


class ReplayRun(Settings):
    """The complete settings of one run: the replay section with the changes of one variant."""

    name: Name
    strategy: Strategy
    ratio: Fraction
    objective: Objective
    weight: NonNegative
    dose: Dose
    draw: Draw
    temperature: Temperature
    accounting: Accounting
    prediction: PredictionMethod
    teacher: Teacher = "live"
    teacher_dtype: FloatType = "float32"
    top_k: PositiveInt | None = None
    heldout_kl: bool = False
    probes: PositiveInt = 30
    probe_choice: ProbeChoice = "random"
    # Shares of the steps after which the model is probed; empty for strategies that choose before.
    probe_after: list[Fraction] = []
    mir_candidates: PositiveInt = _USUAL_CANDIDATES
    mir_order: MirOrder = _USUAL_ORDER
    importance_correction: Correction = _USUAL_CORRECTION
    recipe: VariantRecipe = VariantRecipe()
    interpolate: Share | Shares | None = None

    def results(self) -> list["ReplayRun"]:
        """The runs that the tables list: this one, or one per share of the weights' change."""
        if not isinstance(self.interpolate, list):
            return [self]
        runs = []
        for share in self.interpolate:
            changes = {"name": f"{self.name}-{share:g}", "interpolate": share}
            runs.append(self.model_copy(update=changes))
        return runs

    @property
    def prediction_method(self) -> str | None:
        """The completion method whose predictions this run reads, or None."""
        if self.strategy in (*PREDICTION_METHODS, WITH_SIBLING):
            return self.strategy
        return self.prediction if self.strategy in BUILT_ON_PREDICTION else None

    @property
    def reads_row(self) -> bool:
        """Whether the run reads the task's own measured row."""
        return self.strategy in FROM_MEASURED_ROW

    @property
    def reads_gradients(self) -> bool:
        """Whether the run reads the association `gradient` of the similarity section."""
        return self.strategy in FROM_GRADIENTS

    @property
    def reads_training_rows(self) -> bool:
        """Whether the run reads the rows of the other tasks themselves."""
        return self.strategy == "coverage" or self.chooses_during_training

    @property
    def chooses_during_training(self) -> bool:
        """Whether replayed examples are chosen while the training runs."""
        return self.strategy in DURING_TRAINING

    @property
    def replays(self) -> bool:
        """Whether upstream examples are replayed at all."""
        return self.strategy != "none"

    def describe(self) -> dict[str, Any]:
        """The settings that an advice lists; None where a setting plays no part in the run."""
        has_temperature = "temperature" in self._keys_of_draw
        temperature = self.model_dump(mode="json")["temperature"] if has_temperature else None
        if isinstance(temperature, dict):
            [(unit, value)] = temperature.items()
            temperature = f"{unit} {value:g}"
        changes = dict(self.recipe_changes)
        if self.interpolate is not None:
            changes["interpolate"] = self.interpolate
        return {
            "strategy": self.strategy,
            "objective": self.objective if self.replays else None,
            "dose": self.dose if self.replays else None,
            "ratio": self.ratio if self.replays else None,
            "weight": self.weight if self.replays else None,
            "temperature": temperature,
            "changes": json.dumps(changes) if changes else None,
        }

    @property
    def _keys_of_draw(self) -> set[str]:
        return _keys_of_the_draw(self.strategy, self.draw)

    @property
    def recipe_changes(self) -> dict[str, Any]:
        """Keys of the recipe that differ in this run, as JSON values."""
        return self.recipe.model_dump(mode="json")

    def equals_own_row(self, seed: int) -> bool:
        """Whether the run is the task's own fine-tune, whose row of Z is already measured."""
        changed = self.replays or self.recipe_changes or self.interpolate is not None
        return seed == 0 and not changed and not self.heldout_kl

    def apply_to(self, recipe: Recipe) -> Recipe:
        """The recipe of a fine-tune with this run's changes.

        Raises
        ------
        pydantic.ValidationError
            If recipe and changes do not go together.
        """
        if not self.recipe_changes:
            return recipe
        return Recipe.model_validate(recipe.model_dump() | self.recipe_changes)

    def parameters(self, prompt_kl: bool = False) -> dict[str, Any]:
        """What a run's result depends on, as JSON values for the workflow.

        Settings that play no part in the run are left out, so that another value of them runs
        nothing again. So are those that have the value of the paper's replay: runs that were made
        before these settings existed stay up to date.

        Parameters
        ----------
        prompt_kl
            Whether the run's recipe has a KL term at the new examples' prompts. Its live teacher
            then has the type of the replay's, also where the replay's teacher is stored.
        """
        values = self.model_dump(mode="json", include=self._keys_of_draw - {"draw"})
        if self.replays:
            values |= self._changed(_PAPER_LOSS)
            if "draw" in self._keys_of_draw:
                values["draw"] = self.draw
            if self.dose != "mixed":
                values["weight"] = self.weight
            if self.objective != "text":
                values |= self._teacher_parameters(prompt_kl)
        values |= self._changed(OWN_SETTINGS.get(self.strategy, {}))
        if self.strategy != self.name:
            values["strategy"] = self.strategy
        if self.strategy in BUILT_ON_PREDICTION:
            values["prediction"] = self.prediction
        if self.chooses_during_training:
            keys = {"prediction", "probes", "probe_choice", "probe_after"}
            values |= self.model_dump(mode="json", include=keys)
        if self.interpolate is not None:
            values["interpolate"] = self.interpolate
        if self.heldout_kl:
            values["heldout_kl"] = True
        return values

    @property
    def _keys_with_effect(self) -> set[str]:
        """Keys that play a part in this run, but for those of the teacher."""
        keys = self._keys_of_draw | {"strategy", "recipe", "interpolate", "heldout_kl"}
        keys |= OWN_SETTINGS.get(self.strategy, {}).keys()
        if self.replays:
            keys |= {"objective", "dose"}
            if self.dose != "mixed":
                keys.add("weight")
        if self.strategy in BUILT_ON_PREDICTION or self.chooses_during_training:
            keys.add("prediction")
        if self.chooses_during_training:
            keys |= {"probes", "probe_choice", "probe_after"}
        return keys

    def with_effect(self) -> dict[str, Any]:
        """The settings that play a part in this run; two runs with equal ones are one run."""
        values = self.model_dump(mode="json", include=self._keys_with_effect)
        if self.replays and self.objective != "text":
            values |= self._teacher_parameters(prompt_kl=True)
        return values

    def depends_on(self, key: str) -> bool:
        """Whether this key of a variant can play a part in the run."""
        if key in ("online_after", "closed_loop_after"):
            return self.strategy == key.removesuffix("_after")
        # The KL term of a recipe at the prompts of new examples has a teacher, too.
        if key == "teacher_dtype":
            return True
        if key in ("teacher", "top_k"):
            has_teacher = self.replays and self.objective != "text"
            return has_teacher and (key == "teacher" or self.teacher == "stored")
        return key in self._keys_with_effect

    def _teacher_parameters(self, prompt_kl: bool) -> dict[str, Any]:
        """The keys of the teacher that change a result."""
        values: dict[str, Any] = {}
        if self.teacher == "stored":
            values |= {"teacher": "stored", "top_k": self.top_k}
        if self.teacher_dtype != "float32" and (self.teacher == "live" or prompt_kl):
            values["teacher_dtype"] = self.teacher_dtype
        return values

    def _changed(self, usual: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of `usual` that have another value in this run."""
        values = {}
        for key, value in usual.items():
            if getattr(self, key) != value:
                values[key] = getattr(self, key)
        return values

    @classmethod
    def from_parameters(cls, name: str, parameters: dict[str, Any]) -> "ReplayRun":
        """The run that `parameters` describes; `recipe` is left out, it is part of the job's."""
        left_out = {"strategy": name, "weight": 1.0, "prediction": "gaussian"}
        return cls(name=name, **left_out | _PAPER_LOSS | _DRAW | parameters)


def _keys_of_the_draw(strategy: str, draw: str) -> set[str]:
    """The keys that decide which examples a run replays, and how many."""
    if strategy == "none":
        return set()
    keys = {"ratio", "accounting"}
    if strategy not in UNWEIGHTED:
        # A temperature says that examples are drawn by the softmax.
        keys.add("temperature" if draw == "softmax" else "draw")
    return keys


def parameters_of_today(name: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What `ReplayRun.parameters` gives today for a run that an earlier version recorded.

    Earlier versions also recorded settings that play no part in the run.

    Parameters
    ----------
    name
        Name of the run, which is its strategy if `recorded` names none.
    """
    strategy = recorded.get("strategy", name)
    without_effect = _DRAW.keys() - _keys_of_the_draw(strategy, recorded.get("draw", "softmax"))
    return {key: value for key, value in recorded.items() if key not in without_effect}


# Other tasks whose runs an advice rests on. A line through fewer would follow their noise.
FEWEST_TASKS_OF_ADVICE = 4


class AdviceSettings(Settings):
    """Which replay run to take for a task, from the replay runs of the other tasks."""

    trade: Annotated[list[Positive], Field(min_length=1)] = Field(
        [1.0],
        description="Nats of new-task loss that one nat of forgetting avoided is worth. Each value "
        "is advised for by itself.",
    )
    runs: Annotated[list[Name], Field(min_length=2)] | None = Field(
        None,
        description="Names of the runs to choose from. null: all that do not read the task's "
        "measured row.",
    )

    @model_validator(mode="after")
    def _values_differ(self):
        refuse_repeated_values(self, "trade", *(["runs"] if self.runs else []))
        return self


class Replay(Settings):
    """Fine-tuning with upstream examples among the new ones, so that less is forgotten."""

    strategies: Annotated[list[Strategy], Field(min_length=1)] = Field(
        description="How replayed examples are chosen. Each is one run per task and seed."
    )
    variants: dict[Name, Variant] = Field(
        {}, description="Further runs by name, which differ from this section in some keys."
    )
    ratio: Fraction = Field(1 / 32, description="Replayed examples per new-task example.")
    objective: Objective = Field(
        "kl",
        description="Loss of the replayed examples. kl: the divergence from the base model's "
        "distribution, KL(base || model). text: cross-entropy on their text, as in the paper. "
        "both: half of each.",
    )
    weight: NonNegative = Field(
        4.0, description="Weight of the replayed examples' loss. Not used with dose mixed."
    )
    dose: Dose = Field(
        "token",
        description="How the two losses are combined. token: replayed examples stand in the "
        "batches, and a step's loss is one weighted mean over all tokens. step: every step has the "
        "mean over its new tokens plus weight times the mean over its replayed tokens. mixed: the "
        "paper's way, one mean over the tokens of both; it needs objective text.",
    )
    teacher: Teacher = Field(
        "live",
        description="Where the base model's distributions come from. live: a frozen copy of it "
        "runs beside the trained model (LoRA: the same model without its adapters). stored: they "
        "are computed once per replayed example.",
    )
    teacher_dtype: FloatType = Field(
        "float32", description="Type of the weights of a live teacher that is a copy."
    )
    top_k: PositiveInt | None = Field(
        None,
        description="Most probable words per token that a stored teacher keeps; all others count "
        "as one word. null: all words.",
    )
    draw: Draw = Field(
        "softmax",
        description="softmax: examples are drawn at random, more often where more is forgotten. "
        "top: those that are forgotten most.",
    )
    temperature: Temperature = Field(
        0.1,
        description="Temperature of the softmax over scores. A number is in nats; {sd: x} is in "
        "standard deviations of the task's scores; {effective_share: x} gives an effective sample "
        "size of x times the number of draws.",
    )
    prediction: PredictionMethod = Field(
        "gaussian",
        description="Method that the strategies domain, coverage, importance, online and "
        "closed_loop build on.",
    )
    mir_candidates: PositiveInt = Field(
        _USUAL_CANDIDATES,
        description="Random candidates per draw of the strategies mir, mir_measured and "
        "mir_paper_code. The pool is divided into groups of this size. If there are more draws "
        "than groups, each group gives several examples.",
    )
    mir_order: MirOrder = Field(
        _USUAL_ORDER,
        description="Which of its candidates a mir strategy replays. largest: the one whose loss "
        "rises most. paper_code: the one whose loss rises least, because the paper's reference "
        "code sorts in the reverse order; mir_paper_code always does this.",
    )
    importance_correction: Correction = Field(
        _USUAL_CORRECTION,
        description="How far the weights of the strategy importance undo its draw. An example "
        "that is drawn twice as often counts 1/2 as much with 1, 1/sqrt(2) with 0.5, and as much "
        "as any other with 0. (The exponent beta of prioritized replay.)",
        exclude_if=lambda correction: correction == _USUAL_CORRECTION,
    )
    primary: Name | None = Field(
        None,
        description="The run that the planned comparisons test. null: gaussian if it is among the "
        "strategies, else the first strategy that predicts.",
    )
    tasks: Literal["test", "all"] = Field(
        "test",
        description="Tasks that replay is tested on. all: every task, predicted from the rows of "
        "the other tasks only.",
    )
    heldout_kl: bool = Field(
        False,
        description="Also measure KL(base || model) on the held-out examples: is it still the same "
        "model on them? It takes a forward pass of each of the two models. Also along sequences.",
    )
    noise_floor: NonNegative | None = Field(
        None,
        description="Nats. A rise in loss counts as a rise if it is larger. null: twice the "
        "standard deviation between seeds of the same run; or 0 if there is one seed, or if right "
        "answers are counted.",
    )
    seeds: Seeds = Field([0], description="Seeds of the replay runs; each is a run of its own.")
    probes: PositiveInt = Field(30, description="Probed examples that a prediction rests on.")
    probe_choice: ProbeChoice = Field(
        "a_optimal",
        description="How these are chosen. a_optimal chooses those that leave the least "
        "uncertainty about all examples.",
    )
    accounting: Accounting = Field(
        "add",
        description="Replay adds steps (add), or takes the place of new-task examples (swap). With "
        "swap, the ratio is the replayed share of all examples.",
    )
    online_after: Fraction = Field(
        0.1,
        description="Share of the steps after which the strategy online probes the model. Replay "
        "is random before, and by prediction after.",
    )
    closed_loop_after: ProbeShares = Field(
        [0.25, 0.5, 0.75],
        description="Shares of the steps, in ascending order, after which the strategy closed_loop "
        "probes the model and draws the rest of the replayed examples again. Replay is random "
        "before the first.",
    )
    advise: AdviceSettings | None = Field(
        None,
        description="Advise for each task which replay run to take, from its predicted forgetting "
        "(method: prediction) and the runs of the other tasks. null: no advice.",
    )

    @property
    def names(self) -> list[str]:
        """Names of all runs: the strategies, then the variants."""
        return [*self.strategies, *self.variants]

    @property
    def prediction_methods(self) -> list[str]:
        """Completion methods whose predictions some run reads, in the order of the runs."""
        methods = [self.resolve(name).prediction_method for name in self.names]
        if self.advise is not None:
            methods.append(self.prediction)
        return list(dict.fromkeys(method for method in methods if method is not None))

    def resolve(self, name: str) -> ReplayRun:
        """The complete settings of the run of this name, a strategy or a variant.

        Raises
        ------
        KeyError
            If there is no such run, with the names of all.
        """
        if name not in self.names:
            raise KeyError(f"no replay run {name!r}; runs: {', '.join(self.names)}")
        values = {key: getattr(self, key) for key in _SHARED_KEYS}
        values["strategy"] = name
        if name in self.variants:
            for key in self.variants[name].model_fields_set:
                values[key] = getattr(self.variants[name], key)
        online_after = values.pop("online_after", self.online_after)
        closed_loop_after = values.pop("closed_loop_after", self.closed_loop_after)
        if values["strategy"] in DURING_TRAINING:
            shares = {"online": [online_after], "closed_loop": closed_loop_after}
            values["probe_after"] = shares[values["strategy"]]
            values["probes"] = self.probes
            values["probe_choice"] = self.probe_choice
        if values["dose"] == "mixed":
            # One mean over all tokens has no other weight.
            values["weight"] = 1.0
        return ReplayRun(name=name, **values)

    def tested_tasks(self, tasks: Mapping[str, Task]) -> list[str]:
        """Names of the tasks that replay is tested on, in the order of the task table."""
        everything = self.tasks == "all"
        return [name for name, task in tasks.items() if everything or task.split != "train"]

    def runs(self) -> list[ReplayRun]:
        """The complete settings of all runs."""
        return [self.resolve(name) for name in self.names]

    def results(self) -> list[ReplayRun]:
        """The complete settings of all runs that the tables list (`ReplayRun.results`)."""
        results = []
        for run in self.runs():
            results += run.results()
        return results

    def advised_runs(self) -> list[ReplayRun]:
        """The runs that an advice chooses from; empty without the setting `advise`."""
        if self.advise is None:
            return []
        runs = [run for run in self.results() if not run.reads_row]
        if self.advise.runs is None:
            return runs
        return [run for run in runs if run.name in self.advise.runs]

    @model_validator(mode="after")
    def _random_is_the_yardstick(self):
        refuse_repeated_values(self, "strategies", "seeds")
        if "random" not in self.strategies:
            raise ValueError("strategies must hold 'random': differences are taken to it")
        return self

    @model_validator(mode="after")
    def _variants_are_runs_of_their_own(self):
        for name, variant in self.variants.items():
            if name in STRATEGIES:
                raise ValueError(f"variants.{name}: is the name of a strategy; choose another name")
            empty = [key for key in variant.model_fields_set if getattr(variant, key) is None]
            if empty:
                raise ValueError(f"variants.{name}.{empty[0]}: is null; leave the key out")
            run = self.resolve(name)
            for key in sorted(variant.model_fields_set):
                if not run.depends_on(key):
                    raise ValueError(
                        f"variants.{name}.{key}: plays no part in this run (strategy "
                        f"{run.strategy}, objective {run.objective}, dose {run.dose}, draw "
                        f"{run.draw}, teacher {run.teacher}); leave the key out"
                    )
        named: dict[str, dict[str, Any]] = {}
        for run in self.results():
            values = run.with_effect()
            if run.name in named:
                raise ValueError(f"variants: two runs have the name {run.name!r}; rename one")
            if values in named.values() and run.name not in self.strategies:
                equal = [name for name in named if named[name] == values]
                raise ValueError(
                    f"variants.{run.name}: has the settings of {equal[0]!r}; change a key"
                )
            named[run.name] = values
        results = [run.name for run in self.results()]
        if self.primary is not None and self.primary not in results:
            raise ValueError(
                f"primary: {self.primary!r} is no run of this section; its runs: "
                f"{', '.join(results)}"
            )
        if self.primary == "none":
            raise ValueError(
                f"primary: {self.primary!r} is what other runs are compared with; name a run that "
                "is to forget less"
            )
        return self

    @model_validator(mode="after")
    def _probes_come_in_order(self):
        sections: dict[str, Replay | Variant] = {"": self}
        for name, variant in self.variants.items():
            sections[f"variants.{name}."] = variant
        for prefix, section in sections.items():
            shares = section.closed_loop_after
            if shares is not None and shares != sorted(set(shares)):
                raise ValueError(
                    f"{prefix}closed_loop_after: {shares} is not in ascending order; sort the "
                    "shares and give each once"
                )
        return self

    @model_validator(mode="after")
    def _advice_has_a_choice(self):
        if self.advise is None:
            return self
        usable = [run.name for run in self.results() if not run.reads_row]
        for name in self.advise.runs or []:
            if name not in usable:
                raise ValueError(
                    f"advise.runs: {name!r} is no run of this section, or reads the task's "
                    f"measured row; runs to choose from: {', '.join(usable)}"
                )
        if len(usable) < 2:
            raise ValueError(
                "advise: needs two runs to choose from that do not read the task's measured row; "
                "add a strategy or a variant"
            )
        return self

    @model_validator(mode="after")
    def _mixed_counts_all_tokens_alike(self):
        for run in self.runs():
            where = f"variants.{run.name}: " if run.name in self.variants else ""
            if run.strategy == "importance" and run.dose == "mixed":
                raise ValueError(
                    f"{where}strategy 'importance' weighs the replayed examples, and dose 'mixed' "
                    "counts them all alike; give dose 'token' or 'step'"
                )
            if run.replays and run.dose == "mixed" and run.objective != "text":
                raise ValueError(
                    f"{where}dose 'mixed' needs objective 'text', because it takes one mean over "
                    f"all tokens (value seen: {run.objective}); give dose 'token' or 'step'"
                )
        return self


_SHARED_KEYS = (
    "ratio",
    "objective",
    "weight",
    "dose",
    "draw",
    "temperature",
    "accounting",
    "prediction",
    "teacher",
    "teacher_dtype",
    "top_k",
    "heldout_kl",
    "mir_candidates",
    "mir_order",
    "importance_correction",
)
