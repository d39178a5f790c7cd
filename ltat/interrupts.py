"""Ctrl-C that neither cuts a result in two nor is answered by a traceback."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Inside, Ctrl-C waits until the block is done; for what takes seconds and saves hours."""
    before = signal.getsignal(signal.SIGINT)
    if before is None or threading.current_thread() is not threading.main_thread():  # None: not set by Python
        yield
        return
    waiting: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        signal.raise_signal(signal.SIGINT)


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Inside, the first Ctrl-C interrupts, and more of them are ignored: the way out is not to be interrupted."""
    if not _answered_by(signal.SIGINT, signal.default_int_handler):
        yield  # it is ignored, as behind an & in a script, or somebody else's
        return
    first = _interrupt_at_first(signal.SIGINT)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is first:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def termination_interrupts() -> Iterator[None]:
    """Inside, SIGTERM, as a scheduler sends it, is a Ctrl-C; more of them are ignored."""
    if not _answered_by(signal.SIGTERM, signal.SIG_DFL):
        yield  # it is somebody else's
        return
    _interrupt_at_first(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _answered_by(number: signal.Signals, handler: object) -> bool:
    """Whether this thread may set what answers a signal, and nothing but ``handler`` does so far."""
    return signal.getsignal(number) is handler and threading.current_thread() is threading.main_thread()


def _interrupt_at_first(number: signal.Signals) -> Callable[[int, FrameType | None], None]:
    """Let the first signal raise KeyboardInterrupt, and ignore more of them; returns what answers the first."""

    def first(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(number, first)
    return first
