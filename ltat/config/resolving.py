"""Completing the settings of a run: the only place that decides a setting that was left out.

The values come from :meth:`RunConfig.by_dataset` and :meth:`RunConfig.by_method`.
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
    """The settings that were asked for, completed by the values that depend only on the name of the data set.

    Raises:
        LtatError: an unknown data set.
    """
    usual = find_spec(asked.config.data.name)
    return Asked(_decided(asked.config, asked.config.by_dataset(usual)))


def resolve(asked: Asked[Config], num_classes: int) -> Config:
    """The complete settings of a run on data of ``num_classes`` classes; settings that were given do not change.

    Raises:
        LtatError: an unknown data set, or a setting that was left out and has no value.
    """
    config = for_dataset(asked).config
    config = _decided(config, config.by_method(num_classes))
    require_complete(config)
    return config


def require_complete(config: RunConfig) -> None:
    """Check that every setting is decided.

    Raises:
        LtatError: some settings are not; the message names them.
    """
    names = list(undecided(config))
    if names:
        raise LtatError(f"nothing decides {', '.join(names)} of method {config.method!r}; set it, or resolve() first")


def undecided(section: Section, prefix: str = "") -> Iterator[str]:
    """The dotted names of the settings that are not decided yet."""
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
