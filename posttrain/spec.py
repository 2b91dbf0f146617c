"""Define the base class of every section that YAML can hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Spec(BaseModel):
    """A section of YAML: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


def wrong(message: str, *at: str | int) -> PydanticCustomError:
    """Return the error that a validator raises about the key `at` below its section."""
    return PydanticCustomError("posttrain", "{message}", {"message": message, "at": at})
