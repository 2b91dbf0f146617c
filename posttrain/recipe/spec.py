"""What every section of a YAML file has in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Spec(BaseModel):
    """What every section has in common: unknown keys are errors, values do not change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


def wrong(message: str, *at: str | int) -> PydanticCustomError:
    """A section's own complaint about the key `at` below it, for its validator to raise."""
    return PydanticCustomError("posttrain", "{message}", {"message": message, "at": at})
