"""Types that every section of the experiment is made of."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

# Names become folder and file names: no separators, no leading dot, so none can leave results/.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
Fraction = Annotated[float, Field(gt=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
SHA256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Settings(BaseModel):
    """Base of every section: unknown keys are refused and values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def no_value_twice(settings: Settings, *keys: str) -> None:
    """Raises ValueError, which pydantic reports, if a list holds a value twice."""
    for key in keys:
        values = getattr(settings, key)
        if len(set(values)) < len(values):
            raise ValueError(f"{key} holds a value twice: {values}")
