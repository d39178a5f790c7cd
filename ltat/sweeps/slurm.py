"""Runs as jobs of a Slurm cluster, through submitit; a job that runs out of time is requeued and goes on.

The jobs do not need the sweep that has submitted them. It notes each job's number beside the run's log, and when it is
started again it watches the jobs that are still there instead of submitting them twice.
"""

import importlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltat.errors import LtatError
from ltat.files import atomic_write_text, read_text
from ltat.sweeps.plans import RunPlan
from ltat.sweeps.state import Records, is_finished
from ltat.sweeps.worker import carry_out
from ltat.training.run_folder import STUDENT_FILES, TEACHER_FILES

ENDLESS = 10**6  # time-outs; a job without progress ends itself
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "SRUN_CPUS_PER_TASK")
AT_ONCE = 256  # jobs of an array, where the user sets no limit


def submitit() -> Any:
    """The package of that name.

    Raises:
        LtatError: it is missing.
    """
    try:
        return importlib.import_module("submitit")
    except ModuleNotFoundError:
        raise LtatError(
            'the launcher slurm needs the package submitit; install it: pip install "ltat[slurm]"'
        ) from None


class RunJob:
    """What submitit calls on the node; it is pickled, so that a job has all that it needs."""

    def __init__(self, plan: RunPlan, out: Path) -> None:
        self.plan = plan.to_json()
        self.out = str(out)
        self.started = 0.0

    def __call__(self) -> None:
        """Carry out the run; its output goes to its log.

        Raises:
            RuntimeError: the run failed; Slurm then starts no run that depends on it.
        """
        plan, records = RunPlan.from_json(self.plan), Records(Path(self.out))
        self.started = time.time()
        log = records.path(plan, "log")
        log.parent.mkdir(parents=True, exist_ok=True)
        records.path(plan, "started").touch()
        with log.open("ab") as output:
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
        if carry_out(plan, records):
            raise RuntimeError(records.error(plan))

    def checkpoint(self) -> Any:
        """Called by submitit shortly before the time is over: what the requeued job does.

        Raises:
            LtatError: nothing was saved in all the time, so the next job would not come further.
        """
        if last_saved(RunPlan.from_json(self.plan).folder) < self.started:
            raise LtatError(
                "the time of its Slurm job was over before the run saved anything; "
                "give it more --time, or set train.checkpoint_minutes"
            )
        return submitit().helpers.DelayedSubmission(self)


def last_saved(folder: Path) -> float:
    """When the run last saved what an interruption leaves: a state, or a piece of its evaluation; 0 if never."""
    states = [folder / name for files in (STUDENT_FILES, TEACHER_FILES) for name in files.states]
    pieces = (folder / "evaluation").rglob("*")
    return max((path.stat().st_mtime for path in (*states, *pieces) if path.is_file()), default=0.0)


@dataclass(frozen=True)
class Slurm:
    """Runs as jobs of a Slurm cluster.

    Attributes:
        jobs: jobs of an array under way at a time; left out, 256. There is an array for the teachers, one for the
            students of each teacher, and one for the other runs.
        partition: left out, the cluster's default.
        minutes: the time limit of a job; the run goes on in a new job afterwards.
        gpus: 1, or 0 for a run on the CPU.
        cpus: cores of a run, and its threads.
        sbatch: further options of `sbatch` by name, without the dashes, such as ``{"account": "lab"}``.
        cluster: submitit's name of the place; ``local`` runs the same jobs on this machine, for tests.
    """

    jobs: int | None = None
    partition: str | None = None
    minutes: int = 240
    gpus: int = 1
    cpus: int = 4
    sbatch: Mapping[str, str] = field(default_factory=dict)
    cluster: str = "slurm"
    here = False

    def begin(self, plans: Sequence[RunPlan], records: Records) -> "SlurmJobs":
        """See :class:`ltat.sweeps.jobs.Launcher`."""
        self.executor(records)  # before anything is written
        return SlurmJobs(plans, records, self)

    def executor(self, records: Records, after: str | None = None) -> Any:
        """submitit's executor for jobs that start after the job ``after`` has ended well.

        Raises:
            LtatError: submitit is missing, or this is no machine of a cluster.
        """
        package = submitit()
        try:
            executor = package.AutoExecutor(
                records.folder / "slurm",
                cluster=self.cluster,
                slurm_max_num_timeout=ENDLESS,
                local_max_num_timeout=ENDLESS,
            )
        except RuntimeError:
            raise LtatError(
                "there is no srun here; start the sweep on a cluster's machine, or use launcher local"
            ) from None
        executor.update_parameters(**self.parameters(after))
        return executor

    def parameters(self, after: str | None) -> dict[str, Any]:
        """The resources of a job, by submitit's names."""
        more = {"requeue": True, **self.sbatch}
        if after is not None:
            more |= {"dependency": f"afterok:{after}", "kill-on-invalid-dep": "yes"}
        return {
            "name": "ltat",
            "timeout_min": self.minutes,
            "gpus_per_node": self.gpus,
            "cpus_per_task": self.cpus,
            "tasks_per_node": 1,
            "slurm_partition": self.partition,
            "slurm_array_parallelism": self.jobs or AT_ONCE,
            "slurm_setup": [f"export {name}={self.cpus}" for name in THREADS],
            "slurm_additional_parameters": more,
        }

    def job(self, records: Records, number: str) -> Any:
        """submitit's job of that number."""
        kind = {"slurm": submitit().SlurmJob, "local": submitit().LocalJob}[self.cluster]
        return kind(folder=records.folder / "slurm", job_id=number)


class SlurmJobs:
    """The jobs of a sweep; see :class:`ltat.sweeps.jobs.Jobs`."""

    seconds = 5.0

    def __init__(self, plans: Sequence[RunPlan], records: Records, slurm: Slurm) -> None:
        self._plans = list(plans)
        self._records = records
        self._slurm = slurm
        self._jobs: dict[str, Any] = {}
        self._submitted = False

    def step(self) -> list[RunPlan]:
        """Submit the runs in the first step; later find out which jobs have ended.

        Raises:
            LtatError: Slurm does not take the jobs.
        """
        if not self._submitted:
            self._submitted = True
            self._submit()
        ended = [plan for plan in self._plans if plan.name in self._jobs and self._jobs[plan.name].done()]
        for plan in ended:
            self._close(plan, self._jobs.pop(plan.name))
        return ended

    def active(self) -> set[str]:
        """The names of the runs whose job has started."""
        return {p.name for p in self._plans if p.name in self._jobs and self._records.path(p, "started").exists()}

    def left(self) -> bool:
        """Whether a job has not ended."""
        return not self._submitted or bool(self._jobs)

    def places(self) -> int:
        """The number of jobs at a time, as far as the sweep limits it."""
        return self._slurm.jobs or AT_ONCE

    def interrupt(self) -> str:
        """Leave the jobs alone."""
        numbers = " ".join(sorted({job.job_id.partition("_")[0] for job in self._jobs.values()}))
        return f"interrupted; the Slurm jobs go on, and `scancel {numbers}` ends them" if numbers else "interrupted"

    def _submit(self) -> None:
        """Submit the runs that have no job, teachers first, and each group of students after its teacher."""
        self._records.folder.joinpath("slurm").mkdir(parents=True, exist_ok=True)
        for plan in self._plans:
            job = self._standing_job(plan)
            if job is not None:
                self._jobs[plan.name] = job
        groups = defaultdict(list)
        for plan in self._plans:
            if plan.name not in self._jobs:
                teacher = plan.teacher.name if plan.teacher else ""
                waits = any(other.name == teacher for other in self._plans)
                groups[(not plan.only_teacher, teacher if waits else "")].append(plan)
        for (_, teacher), plans in sorted(groups.items(), key=lambda group: group[0]):
            self._submit_array(plans, self._jobs[teacher].job_id if teacher else None)

    def _standing_job(self, plan: RunPlan) -> Any:
        """The job of an earlier call that is still there, or ``None``."""
        try:
            number = str(json.loads(read_text(self._records.path(plan, "job")))["job"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        job = self._slurm.job(self._records, number)
        return None if job.done(force_check=True) else job

    def _submit_array(self, plans: Sequence[RunPlan], after: str | None) -> None:
        for plan in plans:
            self._records.path(plan, "started").unlink(missing_ok=True)
        executor = self._slurm.executor(self._records, after)
        try:
            jobs = executor.submit_array([RunJob(plan, self._records.folder.parent) for plan in plans])
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise LtatError(f"Slurm does not take the jobs ({reason}); correct the options of the sweep") from None
        for plan, job in zip(plans, jobs, strict=True):
            self._jobs[plan.name] = job
            atomic_write_text(self._records.path(plan, "job"), json.dumps({"job": job.job_id}) + "\n")

    def _close(self, plan: RunPlan, job: Any) -> None:
        """Note why a job has ended that did neither finish its run nor say why."""
        self._records.path(plan, "job").unlink(missing_ok=True)
        if self._records.error(plan) or is_finished(plan):
            return
        logs = self._records.folder
        self._records.fail(plan, f"its Slurm job {job.job_id} ended as {job.state}; see {logs / 'slurm'} and {logs}")
