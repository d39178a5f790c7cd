"""A teacher stage that several runs share: trained once in a folder of its own, and taken over by each of them.

The stage depends on its own settings and on the images, not on the student. A run that takes it over continues from the
state of its last epoch, as after an interruption, so that its files and its bits are those of a run that trained it.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from ltat.config import Asked, RunConfig
from ltat.config.resolving import resolve
from ltat.config.sections import Tree
from ltat.data.loaders.dataloader import dead_workers_reported
from ltat.errors import LtatError
from ltat.files import atomic_write_all, read_bytes
from ltat.methods import find_method
from ltat.training.environment import determinism, environment_record
from ltat.training.fitting import fit
from ltat.training.index_record import index_record
from ltat.training.preparing import PreparedRun, prepare
from ltat.training.reporting import Reporter
from ltat.training.run_folder import (
    TEACHER_FILES,
    RunFolder,
    changed_settings,
    hashes,
    may_change,
    settings_tree,
)
from ltat.training.run_lock import locked, require_unlocked
from ltat.training.stage import Stage
from ltat.training.state_file import State, Unusable, read_state
from ltat.training.teacher import teacher_path

CLASS_COUNTS = (2, 10**4)
"""Two numbers of classes: a teacher stage whose settings depend on the number is not shared."""


def teacher_key(settings: Asked[RunConfig]) -> str | None:
    """What decides the bits of a run's teacher stage, as text; ``None`` where the run has none, or none to share.

    Runs with the same key on the same files have the same teacher.
    """
    if teacher_path(settings.config) is not None:
        return None
    keys = {_stage_key(resolve(settings, classes)) for classes in CLASS_COUNTS}
    return keys.pop() if len(keys) == 1 else None


def _stage_key(config: RunConfig) -> str | None:
    stage = find_method(config.method).teacher_config(config)
    if stage is None:
        return None
    leaves = {name: value for name, value in _leaves(settings_tree(stage)) if not may_change(name)}
    held_out = config.select.holdout if config.select.set == "val" else 0.0
    return json.dumps({**leaves, "held out": held_out}, sort_keys=True)


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def train_teacher_alone(
    settings: Asked[RunConfig] | RunConfig, out: str | Path, *, resume: bool = False, reporter: Reporter | None = None
) -> None:
    """Train only the teacher stage of a run, into the folder ``out``; :func:`ltat.training.train` takes it over.

    Args:
        settings: those of a run with a teacher stage.
        out: the folder of the stage; its ``config.toml`` has the settings of the teacher.
        resume: continue the stage in that folder.
        reporter: shows the progress; by default a new one on standard error.

    Raises:
        LtatError: settings, data or files that cannot be used, or a run without a teacher stage.
    """
    with reporter or Reporter() as shown:
        folder = RunFolder(Path(out), shown.say)
        folder.require_vacant(resume)
        require_unlocked(folder.path)
        run = prepare(settings, shown.evaluation)
        stage = _teacher_stage(run)
        with locked(folder.path, shown.say):
            folder.open(stage.config, run.data.train.num_classes, index_record(run.data, stage.config, {}), resume)
            folder.record_environment(environment_record(stage.device))
            stage.model.requires_grad_(True)  # building the student's method has frozen it
            with determinism(run.config.train.deterministic), dead_workers_reported():
                fit(stage, run.data, folder, TEACHER_FILES, shown)


def finished_stage(run: PreparedRun, source: Path) -> State:
    """The state after the last epoch of the run's teacher stage, from the folder where it was trained alone.

    Raises:
        LtatError: the run has no teacher stage, or that of the folder is not finished, or of other settings or data.
    """
    stage, path = _teacher_stage(run), source / TEACHER_FILES.state
    try:
        state = read_state(path)
    except Unusable as error:
        raise LtatError(f"the teacher in {path} cannot be used: {error}; train it again") from None
    if state["epoch"] != stage.config.train.epochs:
        raise LtatError(f"the teacher in {path} is of epoch {state['epoch']} of {stage.config.train.epochs}; resume it")
    of = state.get("run") or {"settings": {}, "data": {}}
    known = hashes(index_record(run.data, stage.config, {}))
    changed = changed_settings(of["settings"], stage.config, run.data.train.num_classes)
    changed += [
        f"the images {name}" for name in sorted({**known, **of["data"]}) if known.get(name) != of["data"].get(name)
    ]
    if changed:
        raise LtatError(
            f"the teacher in {path} is another than the run's ({', '.join(changed)}); train one for the run"
        )
    return state


def take_over(state: State, source: Path, folder: RunFolder) -> None:
    """Begin the opened run ``folder`` with the finished teacher stage: its best weights, then its state."""
    best = [source / f"{TEACHER_FILES.best}{suffix}" for suffix in (".safetensors", ".json")]
    if best[0].exists():
        atomic_write_all({folder.path / path.name: read_bytes(path) for path in best})
    folder.save_state(TEACHER_FILES.state, state)


def _teacher_stage(run: PreparedRun) -> Stage:
    if run.teacher is None:
        raise LtatError(
            f"a run of method {run.config.method!r} with these settings has no teacher stage; train it whole"
        )
    return run.teacher
