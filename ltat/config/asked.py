"""The settings that were asked for, before they are complete."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from ltat.config.sections import RunConfig

Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class Asked(Generic[Config]):
    """The settings that were asked for; :func:`ltat.config.resolving.resolve` returns the complete ones.

    In ``config`` a setting declared as :data:`ltat.config.Decided` is ``None`` if it was left out.
    """

    config: Config
