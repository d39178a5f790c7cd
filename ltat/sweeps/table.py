"""The progress of a sweep: a live table of all runs in a terminal, or plain lines in a log."""

import sys
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ltat.streams import enduring
from ltat.sweeps.state import Phase, RunState
from ltat.training.reporting import QUIET_SECONDS, epoch_line

COLUMNS = ("epoch", "loss", "train adv", "score", "images/s")
FRAME = 7  # lines of the terminal that are not rows of the table

States = Mapping[str, RunState]


class SweepReporter:
    """Shows how far the runs of a sweep are; a context manager.

    A console that can no longer be written to does not stop the sweep.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=enduring(sys.stderr), stderr=True)
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._shown: dict[str, RunState] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> "SweepReporter":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def update(self, states: States, places: int) -> None:
        """Show the runs as they are now, ``places`` of which can be under way at a time."""
        if self._live is not None:
            self._live.update(live_table(states, places, self.console.height), refresh=True)
        else:
            self._log(states, places)

    def _log(self, states: States, places: int) -> None:
        now = time.monotonic()
        due = now - self._last_line > QUIET_SECONDS
        lines = [name for name, state in states.items() if worth_a_line(self._shown.get(name), state, due)]
        for name in lines:
            self.say(f"{name}: {described(states[name])}")
        if due and lines:
            self.say(summary(states, places))
        if lines:
            self._last_line = now
        self._shown = {**states, **{n: s for n, s in self._shown.items() if n not in lines}}


def worth_a_line(before: RunState | None, state: RunState, due: bool) -> bool:
    """Whether a log has a line about a run: what it does has changed, or new figures are ``due``."""
    if before is None:
        return state.phase is Phase.RUNNING
    return before.phase is not state.phase or (due and before != state)


def described(state: RunState) -> str:
    """A run's state as part of a line."""
    if state.phase is Phase.FAILED:
        return f"failed: {state.error}"
    if state.phase is not Phase.RUNNING:
        return str(state.phase)
    if state.evaluating:
        return "running, evaluation"
    return f"running, epoch {state.epoch} of {state.epochs}" + ("" if state.row is None else f"  ({newest(state)})")


def newest(state: RunState) -> str:
    """The newest metrics of a run as a line."""
    return "" if state.row is None else epoch_line(state.row, state.epochs).partition("  ")[2]


def live_table(states: States, places: int, height: int) -> Group:
    """A row for each run, what happens first, and a summary; runs that do not fit ``height`` lines are counted."""
    table = Table(box=box.HORIZONTALS, show_edge=False)
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    order = list(Phase)
    rows = sorted(states.items(), key=lambda item: order.index(item[1].phase))
    room = max(1, height - FRAME)
    for name, state in rows[:room]:
        table.add_row(Text(name), "evaluation" if state.evaluating else str(state.phase), *cells(state))
    hidden = Counter(state.phase for _, state in rows[room:])
    more = "".join(f", {count} more {phase}" for phase, count in hidden.items())
    return Group(table, Text(summary(states, places) + more))


def cells(state: RunState) -> list[str]:
    """The cells of :data:`COLUMNS`."""
    row = state.row or {}
    figures = {"loss": "{:.3f}", "train_adv": "{:.1f} %", "score": "{:.1f} %", "images_per_s": "{:,.0f}"}
    shown = ["–" if row.get(name) is None else form.format(row[name]) for name, form in figures.items()]
    return [f"{state.epoch}/{state.epochs}", *shown]


def summary(states: States, places: int) -> str:
    """The number of runs by what they do, and the time that the training of the others takes."""
    counts = Counter(state.phase for state in states.values())
    said = [f"{counts[Phase.FINISHED]} of {len(states)} runs finished"]
    said += [f"{counts[phase]} {phase}" for phase in (Phase.RUNNING, Phase.FAILED) if counts[phase]]
    left = seconds_left(states, places)
    return ", ".join(said) + (f"; about {in_words(left)} of training left" if left else "")


def seconds_left(states: States, places: int) -> float | None:
    """The seconds until all epochs are trained, by the newest epochs; ``None`` before the first one.

    A run that has not begun is expected to need the mean time of the others for an epoch.
    """
    known = [state.row["seconds"] for state in states.values() if state.row and "seconds" in state.row]
    if not known:
        return None
    mean = sum(known) / len(known)
    open_runs = [state for state in states.values() if state.phase in (Phase.RUNNING, Phase.STOPPED, Phase.WAITING)]
    each = [(s.epochs - s.epoch) * (s.row["seconds"] if s.row else mean) for s in open_runs]
    return max(sum(each) / max(1, min(places, len(each))), max(each, default=0.0))


def in_words(seconds: float) -> str:
    """A length of time in at most two units."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{hours} h"
