"""Standard output whose reader may go away, whose disk may be full, or whose encoding may lack a letter."""

import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any

from ltat.torchrun import leads

PLAIN = {"█": "#", "…": "...", "–": "-", "→": "->", "±": "+/-"}
"""What is shown for a letter that a terminal lacks; others become question marks."""


class Enduring:
    """A text stream that drops output which it can no longer write; ``failure`` is the first error.

    Everything but writing is the stream's own.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write ``text``, in letters that the stream has, or drop it."""
        shown = printable(text, getattr(self._stream, "encoding", None))
        self._attempt(lambda: self._stream.write(shown))
        return len(text)

    def flush(self) -> None:
        """Write the buffered output, or drop it."""
        self._attempt(self._stream.flush)

    def _attempt(self, write: Callable[[], Any]) -> None:
        if self.failure is None:
            try:
                write()
            except OSError as error:
                self.failure = error
                self._silence()

    def _silence(self) -> None:
        # Python writes what the stream still holds at the program's end, and would fail once more.
        with suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def printable(text: str, encoding: str | None) -> str:
    """``text`` with other letters for those that ``encoding`` lacks; None has them all."""
    return text if _fits(text, encoding) else "".join(c if _fits(c, encoding) else PLAIN.get(c, "?") for c in text)


def _fits(text: str, encoding: str | None) -> bool:
    try:
        text.encode(encoding or "utf-16", "strict" if encoding else "surrogatepass")
    except UnicodeEncodeError:
        return False
    return True


def enduring(stream: Any) -> Any:
    """The stream as an :class:`Enduring` one; None, as Python has it for a closed one, stays None."""
    return None if stream is None else Enduring(stream)


@contextmanager
def enduring_output() -> Iterator[None]:
    """Inside, a standard stream that fails ends nothing.

    A program that would end well then ends with exit code 1, since its output is lost; not where the reader has
    closed the pipe, who wanted no more.
    """
    _fill_closed()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out, err = enduring(sys.stdout), enduring(sys.stderr)
    try:
        yield
    except SystemExit as end:
        lost = _lost(out)
        if end.code or lost is None:
            raise
        print(f"Error: the output could not be printed ({lost.strerror}); free some space", file=err)
        raise SystemExit(1) from None
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def shown_once() -> Iterator[None]:
    """Inside, of the ranks of a run only the first one writes to standard output."""
    if leads():
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Inside, Python's warnings are one line on standard error, without the place in the source that raised them."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        yield


def _lost(out: Any) -> OSError | None:
    if out is None:
        return None
    out.flush()
    return None if isinstance(out.failure, BrokenPipeError) else out.failure


def _fill_closed() -> None:
    """Give a closed standard stream's number to the null device, lest the next file that is opened takes it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError as error:
            if error.errno == errno.EBADF:
                os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
