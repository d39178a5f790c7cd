"""Recipes: published settings by name. One file holds those of a paper or of a group of methods (docs/recipes.md)."""

import os
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from ltat.config.sections import RunConfig, Tree
from ltat.config.toml import from_toml
from ltat.errors import LtatError

TABLES = "recipe"
"""The name of a file's tables of settings, each for the recipes that match a pattern: ``[recipe."trades/*"]``."""
NOTES = ("source", "rows")
"""The entries of such a file that are not settings."""


class Recipe(NamedTuple):
    """A published setting.

    Attributes:
        settings: the tree of its settings, without a method's defaults.
        source: its description, its publication, and the deviations from it, as one line.
    """

    settings: Tree
    source: str


def list_recipes() -> dict[str, Recipe]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("ltat"))) / "recipes"
    found: dict[str, Recipe] = {}
    for path in folder.glob("*.toml"):
        found |= recipes_of(from_toml(path), path.name)
    return dict(sorted(found.items()))


def find_recipe(name: str | os.PathLike[str]) -> Tree:
    """A recipe's settings, by its name in the package, by a TOML file of settings, or by FILE.toml:NAME.

    Raises:
        LtatError: no such recipe; the message has similar names and the command that lists all, or the file's names.
    """
    name = os.fspath(name)
    stem, in_file, own = name.partition(".toml:")
    if in_file:
        file = f"{stem}.toml"
        known = recipes_of(from_toml(Path(file)), file)
        return _named(own, known, f"name one that {file} holds: {', '.join(known)}")
    if Path(name).suffix != ".toml":
        known = list_recipes()
        similar = "".join(f"{other}, " for other in _similar(name, known))
        return _named(name, known, f"name {similar}another that `ltat train --list-recipes` lists, or a .toml file")
    tree = from_toml(Path(name))
    if TABLES in tree:
        raise LtatError(f"{name} holds named recipes; name one as {name}:NAME, of {', '.join(recipes_of(tree, name))}")
    return tree


def _named(name: str, known: Mapping[str, Recipe], remedy: str) -> Tree:
    if name in known:
        return known[name].settings
    raise LtatError(f"there is no recipe {name!r}; {remedy}")


def _similar(name: str, known: Iterable[str]) -> list[str]:
    """At most three names that contain ``name``, or names with a similar spelling."""
    return [other for other in known if name in other][:3] or get_close_matches(name, known)


def recipes_of(tree: Tree, file: str) -> dict[str, Recipe]:
    """The recipes that a file's ``tree`` holds, by name; ``file`` is its name, for messages.

    Each has the settings outside of the ``recipe`` tables, then those of every table whose pattern matches its name, in
    the order of the file. A later value replaces an earlier one.

    Raises:
        LtatError: the file has no such table, a table matches no recipe, or its rows are not words for the one ``*`` in
            its name.
    """
    tables = _tables(tree, file)
    names = dict.fromkeys(name for pattern, table in tables.items() for name in _names(pattern, table, file))
    for pattern in tables:
        if not any(fnmatchcase(name, pattern) for name in names):
            known = ", ".join(names) or "(none)"
            raise LtatError(f'[{TABLES}."{pattern}"] of {file} fits no recipe; correct the name to fit one of {known}')
    shared = {name: value for name, value in tree.items() if name != TABLES}
    fitting = {name: [table for pattern, table in tables.items() if fnmatchcase(name, pattern)] for name in names}
    return {name: _composed([shared, *own]) for name, own in fitting.items()}


def _tables(tree: Tree, file: str) -> dict[str, Tree]:
    tables = tree.get(TABLES)
    if isinstance(tables, dict) and tables and all(isinstance(table, dict) for table in tables.values()):
        return tables
    raise LtatError(f'{file} holds no named recipe; leave the name out, or begin one with [{TABLES}."NAME"]')


def _names(pattern: str, table: Tree, file: str) -> list[str]:
    """The names of the recipes that a table adds: one for each of its rows, or its own name."""
    if "rows" not in table:
        return [] if "*" in pattern else [pattern]
    rows = table["rows"]
    if not isinstance(rows, list) or not all(isinstance(row, str) for row in rows) or pattern.count("*") != 1:
        raise LtatError(
            f'the rows of [{TABLES}."{pattern}"] in {file} are not words for the one * of that name; '
            'write for example rows = ["pgd-at", "trades"]'
        )
    return [pattern.replace("*", row) for row in rows]


def _composed(parts: Sequence[Tree]) -> Recipe:
    """The settings of all parts, later ones on top, and the sources of all parts, one after the other."""
    settings = reduce(RunConfig.over, ({k: v for k, v in part.items() if k not in NOTES} for part in parts))
    sources = " ".join(str(part.get("source", "")) for part in parts)
    return Recipe(settings, " ".join(sources.split()))
