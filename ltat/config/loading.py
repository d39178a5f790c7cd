"""Settings from a recipe, a file and the command line, and back to TOML."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import ValidationError

from ltat.config.sections import RunConfig
from ltat.errors import LtatError

Tree = dict[str, Any]
Config = TypeVar("Config", bound=RunConfig)


def list_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name (``demo/digits`` is ``recipes/demo/digits.toml``)."""
    root = Path(str(resources.files("ltat"))) / "recipes"
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.toml"))}


def from_toml(path: Path) -> Tree:
    """Read a TOML file.

    Raises:
        LtatError: the file cannot be read or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise LtatError(f"the settings file {path} cannot be read ({error}); name an existing TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise LtatError(f"the settings file {path} is not TOML ({error}); correct that line") from None


def to_toml(config: RunConfig) -> str:
    """The settings as TOML; what is ``None`` is left out, since TOML has no word for it."""
    return tomli_w.dumps(config.model_dump(exclude_none=True, by_alias=True, mode="json"))


def find_recipe(name: str) -> Tree:
    """A recipe by its name in the package, or by the path of a TOML file.

    Raises:
        LtatError: neither exists; the message lists the names.
    """
    known = list_recipes()
    if name in known:
        return from_toml(known[name])
    if Path(name).suffix == ".toml":
        return from_toml(Path(name))
    raise LtatError(f"there is no recipe {name!r}; name a .toml file or one of {', '.join(known) or '(none)'}")


def set_by_path(tree: Tree, dotted: str, value: object) -> None:
    """Set ``tree["a"]["b"]`` for the dotted name ``a.b``, making the tables on the way."""
    *tables, leaf = dotted.split(".")
    for table in tables:
        tree = tree.setdefault(table, {})
        if not isinstance(tree, dict):
            raise LtatError(f"setting {dotted!r} goes through {table!r}, which is a value; check the name")
    tree[leaf] = value


def parse_assignment(text: str) -> tuple[str, object]:
    """Split ``section.key=value``; the value is read as TOML where it is TOML, else taken as a word."""
    name, separator, value = text.partition("=")
    if not separator or not name.strip() or not value.strip():
        raise LtatError(f"--set {text!r} is not of the form section.key=value; write for example attack.eps=8/255")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


def load_config(
    config_class: Callable[[str], type[RunConfig]],
    *,
    recipe: str | Tree | None = None,
    settings: Mapping[str, object] | None = None,
    assignments: Sequence[str] = (),
    default_method: str = "self-distill",
) -> RunConfig:
    """Put a run's settings together: method defaults, then the recipe, then ``settings``, then ``assignments``.

    Args:
        config_class: from a method's name to its :class:`RunConfig` subclass.
        recipe: a recipe's name, a TOML file's path, or an already read tree.
        settings: dotted names to values; ``None`` values are passed over.
        assignments: ``section.key=value`` texts, as from ``--set``.
        default_method: the method where nothing names one.

    Raises:
        LtatError: an unknown recipe, method or setting, or a value outside its range.
    """
    tree = find_recipe(recipe) if isinstance(recipe, str) else _copied(recipe or {})
    for name, value in (settings or {}).items():
        if value is not None:
            set_by_path(tree, name, value)
    for name, value in map(parse_assignment, assignments):
        set_by_path(tree, name, value)
    method = tree.setdefault("method", default_method)
    return validated(config_class(str(method)), tree)


def _copied(tree: Tree) -> Tree:
    return {key: _copied(value) if isinstance(value, dict) else value for key, value in tree.items()}


def validated(config_class: type[Config], tree: Tree) -> Config:
    """Check a settings tree against its class.

    Raises:
        LtatError: the first setting that is unknown or out of range, with its name and value.
    """
    try:
        return config_class.model_validate(tree)
    except ValidationError as error:
        raise LtatError(_sentence(error, config_class)) from None


def _sentence(error: ValidationError, config_class: type[RunConfig]) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("constrained", "literal", "float")))
    if first["type"] == "extra_forbidden":
        method = config_class.model_fields["method"].default
        return (
            f"method {method} has no setting {name!r}; `ltat train --method {method} --show-config` lists those it has"
        )
    return f"setting {name}={first['input']!r} is not possible: {first['msg'][0].lower()}{first['msg'][1:]}"
