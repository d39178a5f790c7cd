"""Errors of code that a run calls, with the place where they occurred."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ltat.errors import LtatError
from ltat.ranks import others_endings_reported


@contextmanager
def rephrased(what: str, remedy: str) -> Iterator[None]:
    """Turn an error inside into one sentence; for a programming error it includes the file and line."""
    try:
        with others_endings_reported():
            yield
    except (LtatError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not isinstance(error, RuntimeError | ValueError):
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {reason}, in {place.filename}:{place.lineno}"
        raise LtatError(f"{what} ({reason}); {remedy}") from error


@contextmanager
def located(where: str) -> Iterator[None]:
    """Prefix an error inside with ``where`` it occurred."""
    try:
        yield
    except LtatError as error:
        raise LtatError(f"{where}: {error}") from None
