"""The progress of a run: a bar with images/s and the time left in a terminal, or plain lines in a log."""

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ltat.ranks import Ranks
from ltat.streams import enduring

QUIET_SECONDS = 5.0


class _ImagesPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed or 0:,.0f} images/s")


class Reporter:
    """Shows the progress of long work on a console; a context manager.

    A terminal shows one bar per stage; other outputs get lines, at most one every few seconds. A console that can no
    longer be written to does not stop the run.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=enduring(sys.stderr), stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), _ImagesPerSecond(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._task: Any = None
        self._stage = ""
        self._last_line = time.monotonic()

    def __enter__(self) -> "Reporter":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._progress.stop()

    def begin(self, stage: str, total: int) -> None:
        """Start a stage of ``total`` images; its bar replaces the previous one."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task, self._stage = self._progress.add_task(stage, total=total), stage

    def advance(self, images: int) -> None:
        """Add ``images`` to the count."""
        self._progress.advance(self._task, images)
        task = self._progress.tasks[-1]
        left = "?" if task.time_remaining is None else f"{task.time_remaining:.0f}"
        speed = f"{task.speed or 0:,.0f} images/s, {left} s left"
        self._log(f"{self._stage}: {task.completed:,.0f} of {task.total:,.0f} images, {speed}")

    def epoch(self, row: dict[str, Any], epochs: int) -> None:
        """Show the metrics of a complete epoch."""
        line = epoch_line(row, epochs)
        self._progress.update(self._task, description=line)
        self._log(line, final=row["epoch"] == epochs)

    def evaluation(self, stage: str, done: int, total: int) -> None:
        """Show the progress of an evaluation, as :func:`ltat.evaluate` reports it."""
        if self._task is None or self._stage != stage:
            self.begin(stage, total)
        self._progress.update(self._task, completed=done, total=total)
        self._log(f"{stage}: {done} of {total} images")

    def _log(self, line: str, final: bool = False) -> None:
        now = time.monotonic()
        if not self.console.is_terminal and (final or now - self._last_line > QUIET_SECONDS):
            self.say(line)
            self._last_line = now

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)


def reporter_of(ranks: Ranks) -> Reporter:
    """A new reporter; of several ranks that of the first one alone shows anything."""
    return Reporter() if ranks.leads else Reporter(Console(quiet=True))


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """The metrics of an epoch as a line."""
    parts = [
        f"{row['stage']} {row['epoch']}/{epochs}",
        f"loss {row['loss']:.3f}",
        f"train adv {row['train_adv']:.1f} %",
    ]
    if row.get("score") is not None:
        parts.append(f"{row['select']} {row['score']:.1f} %")
    if row.get("raw", {}).get("score") is not None:
        parts.append(f"raw {row['raw']['score']:.1f} %")
    return "  ".join([*parts, f"{row['images_per_s']:,.0f} images/s"])
