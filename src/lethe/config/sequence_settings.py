"""Settings of sequences: orders in which a model is fine-tuned on one task after the other."""

from typing import Annotated

from pydantic import Field, model_validator

from lethe.config.replay_settings import Replay, ReplayRun
from lethe.config.settings import (
    NO_TRUTH_VALUE,
    Name,
    Positive,
    PositiveInt,
    Seeds,
    Settings,
    refuse_repeated_values,
)

# The replay run that needs no section `replay`.
WITHOUT_REPLAY = "none"


class SequenceRun(Settings):
    """How every step of a sequence is trained."""

    replay: Name = Field(
        WITHOUT_REPLAY,
        description="A strategy or variant of the section replay, or none. Its recipe's changes "
        "hold in every step.",
    )
    earlier: Annotated[float, Field(ge=0, le=1), NO_TRUTH_VALUE] = Field(
        0.0,
        description="Share of the replayed examples that are training examples of the order's "
        "earlier tasks, drawn at random. The others are upstream examples, which the strategy "
        "chooses. The first step has no earlier task, so it replays upstream examples only, or "
        "none at share 1.",
    )
    orders: Annotated[list[Name], Field(min_length=1)] | None = Field(
        None, description="Orders that are followed. null: all."
    )


class Sequences(Settings):
    """Fine-tunes along orders of tasks, measured against the original base model."""

    orders: Annotated[
        dict[Name, Annotated[list[Name], Field(min_length=1)]], Field(min_length=1)
    ] = Field(description="Tasks by the name of their order, from the first to the last.")
    runs: Annotated[dict[Name, SequenceRun], Field(min_length=1)] = Field(
        {WITHOUT_REPLAY: SequenceRun()},
        description="Ways of training by name. Each follows each order once per seed.",
    )
    models: Annotated[list[Name], Field(min_length=1)] | None = Field(
        None, description="Models that follow the orders. null: all."
    )
    seeds: Seeds = Field([0], description="Added to recipe.seed. Each is one sequence.")
    epochs: dict[Name, Annotated[Positive, Field(le=1_000_000)]] = Field(
        {},
        description="Passes over the training examples of a task, in place of recipe.steps and "
        "recipe.max_epochs. Tasks that are not named follow the recipe.",
    )
    multitask: bool = Field(
        True,
        description="Also fine-tune once on all tasks of an order mixed, with as many steps as "
        "the order has in total: the upper bound of what an order can learn.",
    )
    probes: PositiveInt = Field(
        30, description="Upstream examples that are probed after each step to predict the others."
    )

    @model_validator(mode="after")
    def _values_differ(self):
        refuse_repeated_values(self, "seeds", *(["models"] if self.models else []))
        for name, order in self.orders.items():
            repeated = sorted({task for task in order if order.count(task) > 1})
            if repeated:
                raise ValueError(
                    f"orders.{name}: holds {repeated[0]!r} twice; give each task once, because "
                    "the measures compare a task's loss with the loss right after it was learned"
                )
        for name, run in self.runs.items():
            for order in run.orders or []:
                if order not in self.orders:
                    raise ValueError(
                        f"runs.{name}.orders: {order!r} is none of orders: {', '.join(self.orders)}"
                    )
        _refuse_equal(self.orders, "orders", "is in the same order as")
        settings = {name: (run.replay, run.earlier) for name, run in self.runs.items()}
        _refuse_equal(settings, "runs", "has the settings of")
        return self

    @property
    def reference_run(self) -> str:
        """The first run without replay, or else the first: the others are compared with it."""
        for name, run in self.runs.items():
            if run.replay == WITHOUT_REPLAY:
                return name
        return next(iter(self.runs))

    def of_models(self, models: list[str]) -> list[str]:
        """The models, among these, that follow the orders."""
        return [name for name in models if self.models is None or name in self.models]

    def orders_of(self, run: str) -> dict[str, list[str]]:
        """The orders that a run follows, with their tasks."""
        selected = self.runs[run].orders
        return {
            name: tasks
            for name, tasks in self.orders.items()
            if selected is None or name in selected
        }

    def multitask_order(self, order: str) -> str:
        """The first order with the same tasks: orders of the same tasks share one upper bound."""
        tasks = set(self.orders[order])
        return next(name for name, other in self.orders.items() if set(other) == tasks)

    def replay_run(self, run: str, replay: Replay | None) -> ReplayRun:
        """The settings of replay that a run of this section refers to.

        Raises
        ------
        KeyError
            If the section replay has no such strategy or variant.
        """
        name = self.runs[run].replay
        if name == WITHOUT_REPLAY and (replay is None or name not in replay.names):
            measures_kl = replay is not None and replay.heldout_kl
            replay = Replay(strategies=["none", "random"], heldout_kl=measures_kl)
        if replay is None:
            raise KeyError(f"no section replay, which {name!r} would be a run of")
        return replay.resolve(name)


def _refuse_equal(values: dict, key: str, relation: str) -> None:
    names = list(values)
    for number, name in enumerate(names):
        for earlier in names[:number]:
            if values[name] == values[earlier]:
                raise ValueError(f"{key}.{name}: {relation} {earlier!r}; remove one of the two")
