"""Writes the tables of docs/settings.md from the settings themselves: ``python -m ltat.cli.settings_page FILE``."""

import sys
from pathlib import Path

from ltat.config import RunConfig, Section
from ltat.config.reference import markdown_table, purpose, sections_of
from ltat.files import atomic_write_text
from ltat.methods import METHODS

BEGIN = "<!-- Generated from the settings by `python -m ltat.cli.settings_page docs/settings.md`. -->"
DEFAULTS = "A method may have other defaults: [its page](methods/README.md) lists them and says what they rest on."
END = "<!-- End of the generated part. -->"


def generated() -> str:
    """A table for each section of every method, then one for each section that only some have."""
    parts = [f"## Settings of every method\n\n{DEFAULTS}"]
    parts += [_part(name, section) for name, section in sections_of(RunConfig).items()]
    parts.append("## Settings of some methods")
    for (name, _), (section, methods) in _own().items():
        parts.append(_part(name, section, f" Methods: {', '.join(f'`{method}`' for method in methods)}."))
    return "\n\n".join([BEGIN, *parts, END])


def _own() -> "dict[tuple[str, type[Section]], tuple[Section, list[str]]]":
    """By name and class: a section that not every method has, with its first method's defaults, and its methods."""
    own: dict[tuple[str, type[Section]], tuple[Section, list[str]]] = {}
    for method, kind in METHODS.items():
        for name, section in sections_of(kind.Config).items():
            if name not in RunConfig.model_fields:
                own.setdefault((name, type(section)), (section, []))[1].append(method)
    return own


def _part(name: str, section: Section, methods: str = "") -> str:
    return f"### `{name}`\n\n{purpose(section)}{methods}\n\n{markdown_table(name, section)}"


def page(text: str) -> str:
    """The page with its generated part renewed."""
    before, rest = text.split(BEGIN, 1)
    return before + generated() + rest.split(END, 1)[1]


if __name__ == "__main__":
    path = Path(sys.argv[1])
    atomic_write_text(path, page(path.read_text(encoding="utf-8")))
