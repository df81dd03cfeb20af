"""Settings of replay: which upstream examples are mixed into fine-tuning, and how many."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from lethe.config.analysis_settings import ProbeChoice
from lethe.config.settings import Fraction, Positive, Seeds, Settings, refuse_repeated_values

Strategy = Literal["none", "random", "oracle", "column_mean", "additive", "knn", "mf", "gaussian"]


class Replay(Settings):
    """How upstream examples are mixed into fine-tuning on the test tasks."""

    strategies: Annotated[list[Strategy], Field(min_length=1)]
    ratio: Fraction = Field(1 / 32, description="Replayed examples per new-task example.")
    temperature: Positive = Field(0.1, description="Nats, of the softmax over predictions.")
    seeds: Seeds = [0]
    probes: PositiveInt = Field(30, description="Probed examples a prediction rests on.")
    probe_choice: ProbeChoice = Field("random", description="How these are chosen.")
    accounting: Literal["add", "swap"] = Field(
        "add", description="Replay adds steps, or takes the place of new-task examples."
    )

    @model_validator(mode="after")
    def _random_is_the_yardstick(self):
        refuse_repeated_values(self, "strategies", "seeds")
        if "random" not in self.strategies:
            raise ValueError("strategies must hold 'random': differences are taken to it")
        return self
