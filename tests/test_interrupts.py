"""Ctrl-C at a bad moment, and a second one."""

import signal
from collections.abc import Iterator

import pytest

from ltat.interrupts import interrupted_once, interrupts_wait, termination_interrupts


def test_an_interrupt_waits_for_what_must_be_whole():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_wait():
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        done.append(True)
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_inside_goes_before_a_waiting_interrupt():
    with pytest.raises(ValueError), interrupts_wait():
        signal.raise_signal(signal.SIGINT)
        raise ValueError


def test_a_second_interrupt_does_not_disturb_the_way_out():
    try:
        with pytest.raises(KeyboardInterrupt), interrupted_once(), interrupts_wait():
            signal.raise_signal(signal.SIGINT)
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with interrupted_once():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def default_termination() -> Iterator[None]:
    """SIGTERM as a process begins with it, whatever another test has left."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_termination_is_an_interrupt_and_a_second_one_is_ignored(default_termination: None):
    with pytest.raises(KeyboardInterrupt), termination_interrupts():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
