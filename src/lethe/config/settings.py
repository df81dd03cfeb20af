"""Types that several sections of the experiment share."""

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

# Names become names of folders and files. They hold no separator and begin with no dot, so that
# no name can lead out of results/.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
# Versions become part of paths and of the requirement that pip reads.
Version = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9}){0,7}$")]


# YAML 1.1 reads numbers such as 1e-4 and 1.5e3 as text: they lack the point, or the sign.
_EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+")


def number_of(value: Any) -> Any:
    """Reads a number as YAML gives it; a value that is no number is returned as it is.

    Raises
    ------
    ValueError
        For `steps: yes`, which pydantic would read as 1.
    """
    if isinstance(value, bool):
        raise ValueError(
            "a number is needed, not a truth value (YAML reads yes, no, on and off as such)"
        )
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    return value


# Part of the type of every number.
NO_TRUTH_VALUE = BeforeValidator(number_of)
# Numbers beyond 31 bits end every job: libraries store sizes and counts in 32 or 64 bits.
PositiveInt = Annotated[int, Field(gt=0, lt=2**31), NO_TRUTH_VALUE]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**31), NO_TRUTH_VALUE]
# Tokens of the longest example. The loss of a token needs another one before it.
TokenLimit = Annotated[int, Field(ge=2, lt=2**31), NO_TRUTH_VALUE]
Fraction = Annotated[float, Field(gt=0, lt=1), NO_TRUTH_VALUE]
# Numbers beyond 3e38 are infinite in float32.
MOST = 1e37
NonNegative = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False), NO_TRUTH_VALUE]
Positive = Annotated[float, Field(gt=0, le=MOST, allow_inf_nan=False), NO_TRUTH_VALUE]
FloatType = Literal["float32", "bfloat16"]
# Random number generators accept at least 32 bits; the limit leaves room for seeds that are
# derived by adding to this one.
Seed = Annotated[int, Field(ge=0, lt=2**31), NO_TRUTH_VALUE]
Seeds = Annotated[list[Seed], Field(min_length=1)]
# File systems store no longer names.
LONGEST_NAME = 255


def _has_no_long_name(location: str) -> str:
    for name in location.split("/"):
        if len(name.encode("utf-8", "surrogatepass")) > LONGEST_NAME:
            raise ValueError(
                f"the name {name[:20]}... has more than {LONGEST_NAME} bytes, which no file "
                "system stores"
            )
    return location


# A file, folder, or id on the hub. Control characters are never part of a real one.
Location = Annotated[
    str,
    StringConstraints(pattern=r"^[^\x00-\x1f\x7f]{1,1000}$"),
    AfterValidator(_has_no_long_name),
]


def _names_no_parent(revision: str) -> str:
    if ".." in revision:
        raise ValueError("a revision is a branch, tag or commit, without '..'")
    return revision


# Revisions become part of the hub's addresses and of paths in its cache.
Revision = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./@#+-]{0,249}$"),
    AfterValidator(_names_no_parent),
]
SHA256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Settings(BaseModel):
    """Base of every section: unknown keys are refused, and values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def refuse_repeated_values(settings: Settings, *keys: str) -> None:
    """Checks that no value stands twice in any of these lists.

    Raises
    ------
    ValueError
        If one does; pydantic reports it with the section's key.
    """
    for key in keys:
        values = getattr(settings, key)
        if len(set(values)) < len(values):
            raise ValueError(f"{key} holds a value twice: {values}")
