"""Parts of a long command: programs with a time limit each, some side by side, each recorded as it ends."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHORTEST = 5.0  # seconds; with less time left a part is not begun
POLL = 0.1  # seconds between two looks at what is running
PASSED, FAILED, TIMED_OUT, NOT_RUN = "passed", "failed", "timed out", "not run"


@dataclass(frozen=True)
class Part:
    """A program and the seconds it may take.

    Skipped tests fail nothing, so ``proof`` must be found in what it prints, and ``disproof`` must not. With ``first``
    it runs in every call, and where it fails nothing else does.
    """

    name: str
    command: Sequence[str]
    limit: float
    proof: str = ""
    disproof: str = r"(?!)"  # found nowhere
    first: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a part ended: passed, failed, timed out, or not run."""

    name: str
    state: str
    seconds: float
    limit: float
    last_line: str = ""


Stage = tuple[Part, ...]
"""Parts that run side by side."""

Record = Callable[[Outcome], None]
"""Called with every outcome as it is there."""


@dataclass(frozen=True)
class Running:
    """A part that has been started, and its log."""

    part: Part
    log: Path
    limit: float
    process: subprocess.Popen[bytes]
    started: float

    @classmethod
    def start(cls, part: Part, log: Path, limit: float, env: Mapping[str, str]) -> "Running":
        """Start a part, writing into ``log``; OSError where there is no such program."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            process = subprocess.Popen(
                part.command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, process_group=0
            )
        return cls(part, log, limit, process, time.monotonic())

    @property
    def over(self) -> bool:
        """Whether it has ended or is past its limit."""
        return self.process.poll() is not None or time.monotonic() - self.started > self.limit

    def end(self) -> Outcome:
        """How it ended; every process that it started ends with it."""
        code, seconds = self.process.poll(), time.monotonic() - self.started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # also what a part that ended has left behind
        self.process.wait()
        text = self.log.read_text(errors="replace")
        shown = re.search(self.part.proof, text) and not re.search(self.part.disproof, text)
        state = TIMED_OUT if code is None else PASSED if code == 0 and shown else FAILED
        lines = text.strip().splitlines()
        return Outcome(self.part.name, state, seconds, self.limit, lines[-1] if lines else "")


def run_stages(stages: Sequence[Stage], logs: Path, seconds: float, env: Mapping[str, str], record: Record) -> None:
    """Run all stages within ``seconds``, the parts of one side by side; none after a first part that does not pass."""
    end, stopped_by = time.monotonic() + seconds, ""
    for stage in stages:
        if stopped_by:
            for part in stage:
                record(Outcome(part.name, NOT_RUN, 0.0, part.limit, f"{stopped_by} did not pass"))
            continue
        passed = run_stage(stage, logs, end - time.monotonic(), env, record)
        stopped_by = next((part.name for part in stage if part.first and part.name not in passed), "")


def run_stage(stage: Stage, logs: Path, seconds: float, env: Mapping[str, str], record: Record) -> set[str]:
    """Run the parts of a stage side by side, each within its limit and ``seconds``; the names of those that passed."""
    running: list[Running] = []
    passed: set[str] = set()
    try:
        for part in stage:
            begun = begin(part, logs, seconds, env)
            if isinstance(begun, Running):
                running.append(begun)
            else:
                record(begun)
        while running:
            for ended in [one for one in running if one.over]:
                running.remove(ended)
                outcome = ended.end()
                passed |= {outcome.name} if outcome.state == PASSED else set()
                record(outcome)
            time.sleep(POLL)
    finally:
        for left in running:
            left.end()
    return passed


def begin(part: Part, logs: Path, seconds: float, env: Mapping[str, str]) -> Running | Outcome:
    """Start a part, or say why it is not begun."""
    limit = min(part.limit, seconds)
    if limit < min(SHORTEST, part.limit):
        return Outcome(part.name, NOT_RUN, 0.0, part.limit, f"no time was left; --only {part.name} runs it alone")
    try:
        return Running.start(part, logs / f"{part.name}.log", limit, env)
    except OSError as error:
        return Outcome(part.name, FAILED, 0.0, limit, str(error))


def left_to_run(stages: Sequence[Stage], before: Mapping[str, Outcome], only: Collection[str]) -> list[Stage]:
    """The stages without what ``before`` tells the end of; or of ``only``, whatever became of it.

    What timed out may take twice as long.
    """

    def wanted(part: Part) -> bool:
        ended = part.name in before and before[part.name].state in (PASSED, FAILED)
        return part.name in only if only else part.first or not ended

    def longer(part: Part) -> Part:
        told = before.get(part.name)
        cut = told is not None and told.state == TIMED_OUT
        return replace(part, limit=max(part.limit, 2 * told.limit)) if cut else part

    return [tuple(longer(part) for part in stage if wanted(part)) for stage in stages]
