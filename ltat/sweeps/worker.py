"""The process that carries out one run of a sweep, `python -m ltat.sweeps run`, with the run's plan as its input.

The input stays open while the sweep lives. When it closes, the sweep has died, and the run stops as on Ctrl-C.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from ltat.errors import LtatError
from ltat.interrupts import interrupted_once
from ltat.sweeps.plans import RunPlan
from ltat.sweeps.state import Records, missing_figures, read_report
from ltat.training import train, train_teacher_alone
from ltat.training.run_lock import require_unlocked

PATIENCE = 60.0
STOPPED = 130
"""The exit code of a run that was interrupted, which can be resumed."""


def carry_out(plan: RunPlan, records: Records) -> int:
    """Start or resume the run; an error is recorded in one sentence. Returns the exit code."""
    records.clear(plan)
    try:
        run(plan)
    except LtatError as error:
        return failed(plan, records, str(error))
    except MemoryError:
        return failed(plan, records, "there is not enough memory; use smaller batches, or fewer runs at a time")
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return failed(plan, records, f"{reason}; see {records.path(plan, 'log')}")
    return 0


def run(plan: RunPlan) -> None:
    """Train and evaluate as the plan says, from where the run stands.

    Raises:
        LtatError: settings, data or files that cannot be used, or an attack of the evaluation that raised.
    """
    asked = plan.asked()
    wait_until_unlocked(plan.folder)
    if plan.only_teacher:
        return train_teacher_alone(asked, plan.folder, resume=True)
    train(asked, plan.folder, resume=True, teacher_run=None if plan.teacher is None else plan.teacher.folder)
    missing = missing_figures(read_report(plan.folder) or {})
    if missing:
        raise LtatError(f"there is no figure of {', '.join(missing)}; the flags in report.json give the reason")


def wait_until_unlocked(folder: Path, patience: float = PATIENCE) -> None:
    """Wait, ``patience`` seconds at most, for the same run of a sweep that has just been killed to end."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        try:
            return require_unlocked(folder)
        except LtatError:
            time.sleep(0.2)


def failed(plan: RunPlan, records: Records, sentence: str) -> int:
    """Record and print why a run failed; returns the exit code."""
    print(f"Error: {sentence}", file=sys.stderr)
    records.fail(plan, sentence)
    return 2


def stop_with_parent() -> None:
    """Interrupt this process when its standard input closes."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def read_line() -> str:
    """A line of the input, read without a buffer that a thread could hold at the end of the process."""
    line = bytearray()
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return line.decode()


def main() -> int:
    """Carry out the run whose plan is the first line of the input, on the cores that it names."""
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a sweep behind an & in a script hands on that it is ignored
    with interrupted_once():
        signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
        try:
            order = json.loads(read_line())
            stop_with_parent()
            if hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, order["cores"])
            return carry_out(RunPlan.from_json(order["plan"]), Records(Path(order["out"])))
        except KeyboardInterrupt:
            return STOPPED
