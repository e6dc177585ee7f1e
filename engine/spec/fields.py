"""What every section of a recipe is made of: numbers with ranges, and a base that refuses what it does not know."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_COUNT = 10**12


def _integral(value: Any) -> Any:
    """Accept 1e9 and 1000.0 as integers; refuse booleans, fractions and text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a whole number")
    if isinstance(value, float):
        if not math.isfinite(value) or value != int(value):
            raise ValueError("must be a whole number")
        return int(value)
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    return float(value)


Count = Annotated[int, BeforeValidator(_integral), Field(ge=1, le=MAX_COUNT)]
Number = Annotated[float, BeforeValidator(_number)]
Fraction = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
Probability = Fraction
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
Seed = Annotated[int, BeforeValidator(_integral), Field(ge=0, lt=2**63)]


class Spec(BaseModel):
    """Base of every section: frozen, unknown keys refused, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=4096)
