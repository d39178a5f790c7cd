"""What a run is asked to be."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from ltat.config.sections import RunConfig

Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class Asked(Generic[Config]):
    """The settings asked for; :func:`ltat.config.resolving.resolve` makes those of the run of them.

    In ``config`` a setting declared as :data:`ltat.config.Decided` is ``None`` where it is left out.
    """

    config: Config
