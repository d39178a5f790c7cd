"""From the settings asked for to those of the run: the one place where a setting left out gets its value.

What the value is stands with the settings: :meth:`RunConfig.by_dataset` and :meth:`RunConfig.by_method`.
"""

from collections.abc import Iterator, Mapping
from typing import TypeVar

from ltat.config.asked import Asked
from ltat.config.decided import MayBeLeftOut
from ltat.config.loading import set_by_path, validated
from ltat.config.sections import RunConfig, Section
from ltat.data import find_spec
from ltat.errors import LtatError

Config = TypeVar("Config", bound=RunConfig)


def for_dataset(asked: Asked[Config]) -> Asked[Config]:
    """The settings asked for, with those decided that the data set decides by its name alone.

    Raises:
        LtatError: an unknown data set.
    """
    usual = find_spec(asked.config.data.name)
    return Asked(_decided(asked.config, asked.config.by_dataset(usual)))


def resolve(asked: Asked[Config], num_classes: int) -> Config:
    """The complete settings of a run on data of that many classes; a setting that is given stays as it is.

    Raises:
        LtatError: an unknown data set, or a setting that is left out and that nothing decides.
    """
    config = for_dataset(asked).config
    config = _decided(config, config.by_method(num_classes))
    require_complete(config)
    return config


def require_complete(config: RunConfig) -> None:
    """Check that no setting is left to decide.

    Raises:
        LtatError: naming those that are.
    """
    names = list(undecided(config))
    if names:
        raise LtatError(f"nothing decides {', '.join(names)} of method {config.method!r}; set it, or resolve() first")


def undecided(section: Section, prefix: str = "") -> Iterator[str]:
    """The dotted names of the settings that are left to decide."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from undecided(value, f"{prefix}{name}.")
        elif value is None and any(isinstance(mark, MayBeLeftOut) for mark in field.metadata):
            yield f"{prefix}{field.alias or name}"


def _decided(config: Config, values: Mapping[str, object]) -> Config:
    tree, open_names = config.model_dump(by_alias=True), set(undecided(config))
    for name, value in values.items():
        if name in open_names:
            set_by_path(tree, name, value)
    return validated(type(config), tree)
