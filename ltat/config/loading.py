"""Settings from a recipe and the command line."""

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ltat.config.asked import Asked
from ltat.config.recipes import find_recipe
from ltat.config.renamed import todays_name, with_new_names
from ltat.config.sections import RunConfig, Tree, plain
from ltat.config.toml import DEEPEST, parsed_toml
from ltat.errors import LtatError

Config = TypeVar("Config", bound=RunConfig)

_PLAIN = {
    "model_type": "a section, whose settings are given one by one",
    "tuple_type": "a list, such as [0.5, 0.75] or clean,pgd20",
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "a finite number"),
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "a whole number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text (in quotes where it looks like a number)",
}
"""What a setting must be, by pydantic's name of the error."""

_SHOWN = 200  # characters of a wrong value in an error


def set_by_path(tree: Tree, dotted: str, value: object) -> None:
    """Set ``tree["a"]["b"]`` for the dotted name ``a.b``; missing tables are created, and a table is set key by key."""
    *tables, leaf = dotted.split(".")
    if len(tables) >= DEEPEST:
        raise LtatError(f"setting {shortened(dotted)!r} is nested more than {DEEPEST} deep; check the name")
    for table in tables:
        tree = tree.setdefault(table, {})
        if not isinstance(tree, dict):
            raise LtatError(f"setting {dotted!r} goes through {table!r}, which is a value; check the name")
    if isinstance(value, dict):
        for name, own in value.items():
            set_by_path(tree, f"{leaf}.{name}", own)
    else:
        tree[leaf] = value


def parse_assignment(text: str) -> tuple[str, object]:
    """Split ``section.key=value``; the value is read as TOML, or taken as text if it is not TOML."""
    name, separator, value = text.partition("=")
    if not separator or not name.strip() or not value.strip():
        raise LtatError(f"--set {text!r} is not of the form section.key=value; write for example attack.eps=8/255")
    try:
        return name.strip(), parsed_toml(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()
    except ValueError as error:
        raise LtatError(f"--set {shortened(text)!r} cannot be read ({error}); correct the value") from None


def load_config(
    config_class: Callable[[str], type[RunConfig]],
    *,
    recipe: str | os.PathLike[str] | Tree | None = None,
    settings: Mapping[str, object] | None = None,
    assignments: Sequence[str] = (),
    default_method: str = "self-distill",
    decided: Mapping[str, str] = MappingProxyType({}),
) -> Asked[RunConfig]:
    """Put a run's settings together: method defaults, then the recipe, then ``settings``, then ``assignments``.

    Args:
        config_class: maps a method's name to its :class:`RunConfig` subclass.
        recipe: a recipe's name, a TOML file's path, or a tree of settings.
        settings: maps dotted names to values; ``None`` values are ignored. Paths and NumPy numbers are accepted too.
        assignments: ``section.key=value`` texts, as from ``--set``.
        default_method: the method if no source names one.
        decided: the settings that the command itself decides and no assignment may set, each with the reason.

    Raises:
        LtatError: an unknown recipe, method or setting, a value outside its range, or two that exclude each other.
    """
    below = find_recipe(recipe) if isinstance(recipe, str | os.PathLike) else recipe or {}
    given: Tree = {}
    for name, value in (settings or {}).items():
        if value is not None:
            set_by_path(given, name, plain(value))
    assigned = dict(parse_assignment(text) for text in assignments)
    for name, value in assigned.items():
        set_by_path(given, name, value)
    _refuse_decided(assigned, decided)
    method = str(given.get("method", below.get("method", default_method)))
    chosen = config_class(method)
    for name, value in assigned.items():
        if isinstance(value, str) and get_origin(_follow(chosen, todays_name(name, chosen).split("."))[1]) is tuple:
            set_by_path(given, name, [word.strip() for word in value.split(",")])
    below, given = with_new_names(below, chosen), with_new_names(given, chosen)
    tree = chosen.over(below, {**given, "method": method})
    _refuse_second_teacher(given, tree)
    return Asked(validated(chosen, tree))


def _refuse_decided(assigned: Tree, decided: Mapping[str, str]) -> None:
    tree: Tree = {}
    for name, value in assigned.items():
        set_by_path(tree, name, value)
    for name, how in decided.items():
        value = _value(tree, name)
        if value is not None:
            raise LtatError(f"setting {name}={value} is not for this command, where {how}; leave it out")


def _refuse_second_teacher(given: Tree, tree: Tree) -> None:
    # A saved teacher replaces the trained one, which is the default: only asking for both is an error.
    train, path = _value(given, "teacher.train"), _value(tree, "teacher.path")
    if path is not None and train not in (None, "none"):
        raise LtatError(f"teacher.train={train} trains a teacher and teacher.path={path} names one; leave one out")


def _value(tree: Tree, dotted: str) -> Any:
    """The value under a dotted name, or ``None``."""
    value: Any = tree
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def validated(config_class: type[Config], tree: Tree) -> Config:
    """Check a settings tree against its class.

    Raises:
        LtatError: the first setting that is unknown or out of range, with its name and value.
    """
    try:
        return config_class.model_validate(tree)
    except ValidationError as error:
        raise LtatError(_sentence(error, config_class, tree.get("method"))) from None


def _sentence(error: ValidationError, config_class: type[RunConfig], method: object) -> str:
    problems = error.errors()
    first = problems[0]
    for problem in problems:
        raised = problem.get("ctx", {}).get("error")
        if isinstance(raised, LtatError):  # the setting's own check has a complete sentence
            return str(raised)
    name = _setting_name(first, config_class)
    if first["type"] == "extra_forbidden":
        return (
            f"method {method} has no setting {name!r}; `ltat train --method {method} --show-config` lists those it has"
        )
    # A setting of several types has one problem for each type, and accepts any of them.
    wanted = [_wanted(problem) for problem in problems if _setting_name(problem, config_class) == name]
    value, possible = shortened(repr(first["input"])), " or ".join(dict.fromkeys(wanted))
    return f"setting {name}={value} is not possible: it must be {possible}"


def shortened(text: str) -> str:
    """The beginning of a text that is too long for a sentence."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _setting_name(problem: ErrorDetails, config_class: type[RunConfig]) -> str:
    """The dotted name of the setting, without the positions and alternatives that pydantic adds."""
    return ".".join(_follow(config_class, map(str, problem["loc"]))[0])


def _follow(config_class: type[RunConfig], parts: Iterable[str]) -> tuple[list[str], object]:
    """The parts of a dotted name down to its setting, and that setting's type (``None`` if it does not exist)."""
    names: list[str] = []
    kind: Any = config_class
    for part in parts:
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            break
        names.append(part)
        fields = kind.model_fields
        field = fields.get(part) or next((field for field in fields.values() if field.alias == part), None)
        kind = None if field is None else field.annotation
    return names, kind


def _wanted(problem: ErrorDetails) -> str:
    plain = _PLAIN.get(problem["type"])
    return plain or problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
