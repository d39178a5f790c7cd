"""Runs as processes of this machine: one for each GPU, or each with its share of the cores."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ltat.data.workers import available_cores
from ltat.errors import LtatError
from ltat.sweeps.jobs import failed_teacher
from ltat.sweeps.plans import RunPlan
from ltat.sweeps.state import Records
from ltat.sweeps.worker import STOPPED

THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
PATIENCE = 120.0  # seconds that a stopped run may take to write its state


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time: its cores, its threads, and its GPU if there is one."""

    cores: tuple[int, ...]
    threads: int
    gpu: str | None = None

    def environment(self) -> dict[str, str]:
        """The environment of a process in this place."""
        own = dict.fromkeys(THREAD_SETTINGS, str(self.threads))
        return {**os.environ, **own, **({} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu})}


@dataclass(frozen=True)
class Local:
    """Runs as processes of this machine.

    Attributes:
        jobs: runs at a time; left out, one for each GPU, or for each core where the runs need the CPU.
        threads: threads of a run; left out, the cores divided by ``jobs``.
    """

    jobs: int | None = None
    threads: int | None = None
    here = True

    def begin(self, plans: Sequence[RunPlan], records: Records) -> "LocalJobs":
        """See :class:`ltat.sweeps.jobs.Launcher`."""
        return LocalJobs(plans, records, self.slots(plans))

    def slots(self, plans: Sequence[RunPlan]) -> list[Slot]:
        """The places for runs.

        Raises:
            LtatError: a run asks for one GPU of several, where each run is given one.
        """
        devices = {str(plan.settings["train"]["device"]) for plan in plans}
        gpus = [] if devices == {"cpu"} else visible_gpus()
        numbered = sorted(name for name in devices if name.startswith("cuda:") and name != "cuda:0")
        if numbered:
            raise LtatError(f"train.device={numbered[0]} names a GPU and a sweep gives each run one; use auto or cuda")
        cores = sorted(available_cores())
        jobs = self.jobs or len(gpus) or len(cores)
        share = max(1, len(cores) // jobs)
        shares = [tuple(cores[(k * share + i) % len(cores)] for i in range(share)) for k in range(jobs)]
        return [Slot(own, self.threads or share, gpus[k % len(gpus)] if gpus else None) for k, own in enumerate(shares)]


def visible_gpus() -> list[str]:
    """The GPUs of this process, as ``CUDA_VISIBLE_DEVICES`` names them."""
    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named.split(",") if named else [str(number) for number in range(count)])[:count]


class LocalJobs:
    """The processes of a sweep; see :class:`ltat.sweeps.jobs.Jobs`."""

    seconds = 0.2

    def __init__(self, plans: Sequence[RunPlan], records: Records, slots: Sequence[Slot]) -> None:
        self._waiting = list(plans)
        self._records = records
        self._slots = slots
        self._running: dict[int, tuple[RunPlan, subprocess.Popen[bytes]]] = {}
        self._failed: set[str] = set()

    def step(self) -> list[RunPlan]:
        """End the runs whose process has ended, and start others in their places."""
        ended = self._reap() + self._drop()
        for place in range(len(self._slots)):
            if place not in self._running:
                ready = next((plan for plan in self._waiting if not self._waits(plan)), None)
                if ready is None:
                    break
                self._waiting.remove(ready)
                self._running[place] = ready, start(ready, self._records, self._slots[place])
        return ended

    def active(self) -> set[str]:
        """The names of the runs that have a process."""
        return {plan.name for plan, _ in self._running.values()}

    def left(self) -> bool:
        """Whether a process runs, or a run waits for its place."""
        return bool(self._running or self._waiting)

    def places(self) -> int:
        """The number of processes at a time."""
        return len(self._slots)

    def interrupt(self) -> str:
        """Interrupt every process as Ctrl-C does, and wait for the last."""
        processes = [process for _, process in self._running.values()]
        for process in processes:
            process.terminate()
        end = time.monotonic() + PATIENCE
        for process in processes:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        what = "the run under way was" if len(processes) == 1 else f"the {len(processes)} runs under way were"
        return f"interrupted; {what} stopped"

    def _waits(self, plan: RunPlan) -> bool:
        unfinished = {other.name for other in self._waiting} | self.active()
        return plan.teacher is not None and plan.teacher.name in unfinished

    def _reap(self) -> list[RunPlan]:
        ended = []
        for place, (plan, process) in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[place]
            ended.append(plan)
            if code:
                self._failed.add(plan.name)
                self._explain(plan, code)
        return ended

    def _explain(self, plan: RunPlan, code: int) -> None:
        if not self._records.error(plan):
            how = "was stopped from outside" if code == STOPPED else f"ended with code {code}"
            how = f"was killed by signal {-code} (is there enough memory?)" if code < 0 else how
            self._records.fail(plan, f"its process {how}; see {self._records.path(plan, 'log')}")

    def _drop(self) -> list[RunPlan]:
        """Give up the runs whose teacher has failed."""
        dropped = [plan for plan in self._waiting if plan.teacher is not None and plan.teacher.name in self._failed]
        for plan in dropped:
            self._waiting.remove(plan)
            self._records.fail(plan, failed_teacher(plan))
        return dropped


def start(plan: RunPlan, records: Records, slot: Slot) -> "subprocess.Popen[bytes]":
    """The process of a run; it stops when this process ends, however it ends.

    Raises:
        LtatError: its log cannot be written.
    """
    log = records.path(plan, "log")
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    except OSError as error:
        raise LtatError(f"{log} cannot be written ({error.strerror}); name another folder for the sweep") from None
    with output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ltat.sweeps", "run"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=slot.environment(),
            start_new_session=True,  # Ctrl-C in a terminal reaches the sweep alone, which stops its runs
        )
    assert process.stdin is not None
    order = {"plan": plan.to_json(), "out": str(records.folder.parent), "cores": slot.cores}
    process.stdin.write(json.dumps(order).encode() + b"\n")
    process.stdin.flush()
    return process
