"""Settings that the data or the method decide if they are left out."""

from typing import Annotated, Any, TypeVar

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

T = TypeVar("T")


class MayBeLeftOut:
    """Lets pydantic read ``None`` as a setting that is left out."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.nullable_schema(handler(source))


Decided = Annotated[T, MayBeLeftOut()]
"""A setting of type T; it is ``None`` only until :func:`ltat.config.resolving.resolve` decides it."""


def left_out() -> Any:
    """The default of a :data:`Decided` setting."""
    return None
