"""Settings as TOML: reading a file or text, and writing settings."""

import tomllib
from pathlib import Path

import tomli_w

from ltat.config.sections import RunConfig, Tree
from ltat.errors import LtatError
from ltat.files import read_text

DEEPEST = 8
"""The deepest nesting of tables and lists; settings have two levels, a file of recipes four."""
_LARGEST = 1 << 20  # bytes of a settings file; the largest file of recipes has a few thousand


def from_toml(path: Path) -> Tree:
    """Read a TOML file.

    Raises:
        LtatError: the file cannot be read or is not TOML.
    """
    try:
        return parsed_toml(read_text(path, _LARGEST))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise LtatError(f"the settings file {path} cannot be read ({reason}); name an existing TOML file") from None
    except ValueError as error:
        raise LtatError(f"the settings file {path} is not TOML ({error}); correct that line") from None


def parsed_toml(text: str) -> Tree:
    """Read TOML text.

    Raises:
        ValueError: the text is not TOML, has a whole number of more than 64 bits, or is nested too deep.
    """
    too_deep = ValueError(f"it is nested more than {DEEPEST} deep")
    too_long = ValueError("it holds a whole number of more than 64 bits")
    try:
        tree = tomllib.loads(text)
    except RecursionError:
        raise too_deep from None
    except ValueError as error:
        raise error if isinstance(error, tomllib.TOMLDecodeError) else too_long from None
    level: list[object] = [tree]
    for _ in range(DEEPEST):
        level = [value for holder in level for value in _values(holder)]
        if any(isinstance(value, int) and value.bit_length() > 64 for value in level):
            raise too_long
    if any(map(_values, level)):
        raise too_deep
    return tree


def _values(value: object) -> list[object]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def to_toml(config: RunConfig) -> str:
    """The settings as TOML; ``None`` is left out, because TOML cannot express it."""
    return tomli_w.dumps(config.model_dump(exclude_none=True, by_alias=True, mode="json"))
