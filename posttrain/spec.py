"""Define the base class of every section that YAML can hold."""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError

Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Spec(BaseModel):
    """A section of YAML: unknown keys are errors, values are frozen."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        # A validator is built when it is first used: most sections are used as part of another.
        defer_build=True,
    )

    @classmethod
    def reserved(cls, key: str) -> str | None:
        """Return where else to set a key that posttrain sets here; None for any other key."""
        return None

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Add the docstrings of fields; pydantic's own way reads the source at every import."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for section in reversed(cls.mro()):
            if issubclass(section, Spec):
                for name, text in _field_docstrings(section).items():
                    if (field := cls.model_fields.get(name)) is not None:
                        properties[field.alias or name]["description"] = text
        return schema


def wrong(message: str, *at: str | int) -> PydanticCustomError:
    """Return the error that a validator raises about the key `at` below its section."""
    return PydanticCustomError("posttrain", "{message}", {"message": message, "at": at})


def _field_docstrings(section: type[Spec]) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for field, after in pairwise(definition.body):
        match field, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = inspect.cleandoc(text)
            case _:
                continue
    return found
