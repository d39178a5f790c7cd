"""The reference of the settings: tables for the pages, and a run's settings as TOML with a comment each.

The texts are the attribute docstrings of the sections.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import tomli_w
from pydantic.fields import FieldInfo

from ltat.config.sections import RunConfig, Section, Tree


class Setting(NamedTuple):
    """One setting: its name within the section, its default and its meaning."""

    name: str
    default: Any
    meaning: str


def settings_of(section: Section) -> Iterator[Setting]:
    """The settings of a section, with its values as defaults; sections within it are left out."""
    values = section.model_dump(mode="json", by_alias=True)
    for name, field in type(section).model_fields.items():
        if section.section(name) is None:
            yield Setting(field.alias or name, values[field.alias or name], _meaning(field))


def sections_of(kind: type[RunConfig]) -> dict[str, Section]:
    """The sections of a method's settings, with its defaults."""
    defaults = {name: field.get_default(call_default_factory=True) for name, field in kind.model_fields.items()}
    return {name: value for name, value in defaults.items() if isinstance(value, Section)}


def purpose(section: Section) -> str:
    """The purpose of a section: the first line of its docstring."""
    return (type(section).__doc__ or "").partition("\n")[0].replace("``", "`")


def shown(value: object) -> str:
    """A value as it would be written after ``--set``; ``(left out)`` for ``None``."""
    return "(left out)" if value is None else value if isinstance(value, str) else json.dumps(value)


def markdown_table(section_name: str, section: Section) -> str:
    """The settings of a section as a table: name, default, meaning."""
    rows = [
        f"| `{section_name}.{name}` | {_code(default)} | {meaning} |" for name, default, meaning in settings_of(section)
    ]
    return "\n".join(["| setting | default | what it is |", "|---|---|---|", *rows])


def _code(value: object) -> str:
    return "left out" if value is None else f"`{shown(value)}`"


def commented_toml(config: RunConfig) -> str:
    """The settings as TOML, each below its meaning; a setting that is left out is a comment."""
    values = config.model_dump(by_alias=True, mode="json")
    plain = {name: value for name, value in values.items() if not isinstance(value, dict)}
    return tomli_w.dumps(plain) + "".join(_commented(config, values, ""))


def _commented(holder: Section, values: Tree, prefix: str) -> Iterator[str]:
    for name in type(holder).model_fields:
        section = getattr(holder, name)
        if isinstance(section, Section):
            path = f"{prefix}{name}"
            yield f"\n[{path}]  # {purpose(section)}".rstrip("# ") + "\n"
            yield from (_line(setting) for setting in settings_of(section))
            yield from _commented(section, values[name], f"{path}.")


def _line(setting: Setting) -> str:
    name, value, meaning = setting
    written = f"# {name} is left out\n" if value is None else tomli_w.dumps({name: value})
    return f"# {meaning}\n{written}" if meaning else written


def _meaning(field: FieldInfo) -> str:
    return (field.description or "").replace("\n", " ")
