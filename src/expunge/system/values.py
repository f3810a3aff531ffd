"""Types of values in params.yaml."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict

# Types of values. Strict: no text is read as a number, no bool as an int, no set as a list. An int may be a float.
Count = Annotated[int, Strict(), Field(ge=1, le=100_000)]
Rows = Annotated[int, Strict(), Field(ge=1, le=2**31 - 1)]
BatchSize = Annotated[int, Strict(), Field(ge=1, le=2**20)]
Models = Annotated[int, Strict(), Field(ge=0, le=100_000)]
Seed = Annotated[int, Strict(), Field(ge=0, le=2**32 - 1)]
Index = Annotated[int, Strict()]
Rate = Annotated[float, Strict(), Field(gt=0, le=1000, allow_inf_nan=False)]
Penalty = Annotated[float, Strict(), Field(ge=0, le=1000, allow_inf_nan=False)]
Momentum = Annotated[float, Strict(), Field(ge=0, lt=1, allow_inf_nan=False)]
Share = Annotated[float, Strict(), Field(gt=0, lt=1, allow_inf_nan=False)]
Portion = Annotated[float, Strict(), Field(gt=0, le=1, allow_inf_nan=False)]
Size = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]
Half = Annotated[float, Strict(), Field(ge=0, le=0.5, allow_inf_nan=False)]
Text = Annotated[str, Strict(), Field(pattern=r"^[^\x00]+$")]
Bool = Annotated[bool, Strict()]
EntryName = Annotated[str, Strict(), Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # part of file names
