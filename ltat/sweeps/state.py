"""How far a run of a sweep is, read from its files only, so that it holds for runs on other machines."""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ltat.config import Asked, from_toml
from ltat.config.loading import validated
from ltat.config.renamed import with_new_names
from ltat.config.resolving import for_dataset, undecided
from ltat.errors import LtatError
from ltat.files import atomic_write_text, exists, read_text
from ltat.methods import find_method
from ltat.sweeps.plans import RunPlan
from ltat.training.epoch_metrics import Row
from ltat.training.run_folder import TEACHER_FILES, differing_settings, parsed_row

LARGEST = 1 << 28  # bytes of a file that is read; metrics of 1000 epochs over 1000 classes are 20 MB


class Phase(StrEnum):
    """What a run does."""

    RUNNING = "running"
    FAILED = "failed"
    STOPPED = "stopped"
    WAITING = "waiting"
    FINISHED = "finished"


@dataclass(frozen=True)
class RunState:
    """How far a run is.

    Attributes:
        phase: what it does; the files alone never say ``running``.
        epoch: finished epochs, those of the teacher stage included.
        epochs: all of them.
        row: the newest metrics, or ``None`` before the first epoch.
        error: why it failed, in one sentence.
    """

    phase: Phase
    epoch: int
    epochs: int
    row: Row | None = None
    error: str = ""

    @property
    def evaluating(self) -> bool:
        """Whether only the evaluation is left."""
        return self.phase is Phase.RUNNING and self.epoch == self.epochs


class Records:
    """The records of a sweep beside its runs, in ``out/logs``: each run's output, and why it failed."""

    def __init__(self, out: Path) -> None:
        self.folder = out.absolute() / "logs"

    def path(self, plan: RunPlan, kind: str) -> Path:
        """The file of a run, of a ``kind`` such as ``log``."""
        return self.folder / f"{plan.name}.{kind}"

    def fail(self, plan: RunPlan, sentence: str) -> None:
        """Record why the run failed."""
        atomic_write_text(self.path(plan, "error"), sentence + "\n")

    def clear(self, plan: RunPlan) -> None:
        """Forget an earlier failure; called when the run starts again."""
        self.path(plan, "error").unlink(missing_ok=True)

    def error(self, plan: RunPlan) -> str:
        """Why the run failed, or nothing."""
        try:
            return read_text(self.path(plan, "error"), LARGEST).strip()
        except (OSError, UnicodeDecodeError):
            return ""


def state_of(plan: RunPlan, records: Records) -> RunState:
    """How far a run is that is not under way.

    Raises:
        LtatError: its folder holds a run of other settings.
    """
    if is_finished(plan):
        return progress_of(plan, Phase.FINISHED)
    error, begun = records.error(plan), exists(plan.folder / "config.toml")
    return progress_of(plan, Phase.FAILED if error else Phase.STOPPED if begun else Phase.WAITING, error)


def progress_of(plan: RunPlan, phase: Phase, error: str = "") -> RunState:
    """The epochs and the newest metrics of a run that is in ``phase``."""
    rows, epochs = newest_rows(plan.folder), total_epochs(plan)
    epoch, newest = sum(row["epoch"] for row in rows.values()), next(reversed(rows.values()), None)
    return RunState(phase, min(epoch, epochs), epochs, newest, error)


def total_epochs(plan: RunPlan) -> int:
    """The epochs of all stages of a run."""
    teacher, own = plan.settings.get("teacher", {}), plan.settings["train"]["epochs"]
    stage = teacher["epochs"] if teacher.get("train") == "balanced" and "path" not in teacher else 0
    return int(stage if plan.only_teacher else own + stage)


def newest_rows(folder: Path) -> dict[str, Row]:
    """The metrics of each stage's newest epoch."""
    try:
        lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    except OSError:
        return {}
    return {row["stage"]: row for row in map(parsed_row, lines) if row}


def read_report(folder: Path) -> dict[str, Any] | None:
    """The content of ``report.json``, or ``None`` where there is none to read."""
    try:
        report = json.loads(read_text(folder / "report.json", LARGEST))
    except (OSError, ValueError, RecursionError):
        return None
    return report if isinstance(report, dict) else None


def missing_figures(report: dict[str, Any]) -> list[str]:
    """The attacks of a report that have no figure, each with its checkpoint."""
    return [f"{attack} of {role}" for role, each in report.items() for attack in each.get("failed", {})]


def is_finished(plan: RunPlan) -> bool:
    """Whether nothing is left to do: a teacher stage is complete, or the report has every figure that is asked for.

    Raises:
        LtatError: the folder holds a run of other settings.
    """
    if plan.only_teacher:
        return _saved_epoch(plan.folder / f"{TEACHER_FILES.last}.json") == total_epochs(plan)
    if not exists(plan.folder / "config.toml"):
        return False
    evaluated = _require_same_run(plan)
    report = read_report(plan.folder)
    return report is not None and evaluated and not missing_figures(report)


def _require_same_run(plan: RunPlan) -> bool:
    """Check the settings of the standing run; whether its evaluation is that of the plan, too."""
    saved = from_toml(plan.folder / "config.toml")
    if saved.get("method") != plan.settings["method"]:
        raise LtatError(
            f"{plan.folder} holds a run of method {saved.get('method')!r}; name another folder for the sweep"
        )
    kind = find_method(plan.settings["method"]).Config
    standing = for_dataset(Asked(validated(kind, with_new_names(saved, kind)))).config.model_dump(mode="json")
    planned = for_dataset(plan.asked()).config
    left_open = set(undecided(planned))
    wanted = planned.model_dump(mode="json")
    changed = [name for name in differing_settings(standing, wanted) if name not in left_open]
    if changed:
        raise LtatError(
            f"{plan.folder} holds a run with other settings ({', '.join(changed)}); name another folder for the sweep"
        )
    return bool(standing["eval"] == wanted["eval"])


def _saved_epoch(card: Path) -> object:
    try:
        return json.loads(read_text(card, LARGEST)).get("extra", {}).get("epoch")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
