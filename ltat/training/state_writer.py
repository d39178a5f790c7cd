"""When the state of a running stage is written: after every epoch, and within an epoch when minutes have passed."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from ltat.interrupts import interrupts_wait
from ltat.training.epoch_metrics import Row
from ltat.training.run_folder import RunFolder
from ltat.training.trainer import Trainer
from ltat.training.trainer_state import state_of


class Timer:
    """Whether so many minutes have passed since the last start; with 0 they never have.

    Args:
        minutes: 0 or more.
        clock: returns seconds; it never goes back.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = 60 * minutes
        self.clock = clock
        self.start()

    def start(self) -> None:
        """Count from now on."""
        self._started = self.clock()

    def is_over(self) -> bool:
        """Whether the time has passed."""
        return 0 < self.seconds <= self.clock() - self._started


@dataclass
class StateWriter:
    """Writes the states of a stage.

    Attributes:
        trainer: of the stage.
        folder: of the run.
        name: of the file.
        rows: the metrics of the complete epochs.
        best: those of the best epoch.
        timer: says when a state is due within an epoch.
    """

    trainer: Trainer
    folder: RunFolder
    name: str
    rows: list[Row]
    best: Row
    timer: Timer

    def write(self) -> None:
        """Write the state now; raises ``LtatError`` if it cannot be written."""
        self.folder.save_state(self.name, {**state_of(self.trainer), "rows": self.rows, "best": self.best})
        self.timer.start()

    def write_if_due(self) -> None:
        """Write the state between two steps of an epoch, if the time since the last one is over.

        Raises:
            LtatError: the training has diverged, or the state cannot be written.
        """
        if self.trainer.metrics.steps and self.timer.is_over():
            self.trainer.require_finite()  # a state that could not be used would take the place of a good one
            with interrupts_wait():
                self.write()
