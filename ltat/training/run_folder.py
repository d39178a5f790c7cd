"""The folder of a run: its settings, environment, data indices, metrics, weights and state."""

import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltat.config import Asked, RunConfig, from_toml, to_toml
from ltat.config.loading import validated
from ltat.config.renamed import with_new_names
from ltat.config.resolving import resolve
from ltat.config.sections import Tree
from ltat.errors import LtatError
from ltat.files import atomic_write_text, exists, read_bytes, read_text
from ltat.models import Classifier, save_model
from ltat.training.epoch_metrics import Row
from ltat.training.state_file import State, before, newest_state, write_state

FREE_TO_CHANGE = ("train.device", "train.checkpoint_minutes", "loader.", "eval.", "data.download")
"""What may change on resuming, since the result of training does not depend on it."""
UNSAVED = "teacher_buffers"
LATER = ("classes", UNSAVED)  # entries of indices.json that run folders of former versions do not have
NOT_FREE = ("eval.tau",)  # it affects the choice of the best checkpoint


@dataclass(frozen=True)
class StageFiles:
    """The names of a stage's files in the run folder: newest and best weights, and the state to resume from.

    ``raw_last`` and ``raw_best`` are those of the raw network, where a stage can have them beside its average.
    """

    last: str
    best: str
    state: str
    raw_last: str = ""
    raw_best: str = ""

    @property
    def states(self) -> tuple[str, str]:
        """The newest state and the one before it."""
        return self.state, before(Path(self.state)).name

    @property
    def names(self) -> tuple[str, ...]:
        """All files of the stage."""
        weights = filter(None, (self.last, self.best, self.raw_last, self.raw_best))
        return (*self.states, *(f"{name}.safetensors" for name in weights))


STUDENT_FILES = StageFiles("last", "best", "state.pt", raw_last="raw-last", raw_best="raw-best")
TEACHER_FILES = StageFiles(last="teacher", best="teacher-best", state="teacher-state.pt")

REMAINS = (
    *("metrics.jsonl", "report.json"),
    *(name for files in (STUDENT_FILES, TEACHER_FILES) for name in files.names),
)
"""The files that show that a folder without settings held a run."""


class RunFolder:
    """A run's folder. All files are written atomically, except for appending to ``metrics.jsonl``.

    Args:
        path: of the folder, which may not exist yet.
        say: called with each line for the user.
    """

    def __init__(self, path: Path, say: Callable[[str], None] = lambda line: None) -> None:
        self.path = path
        self.say = say
        self._config: RunConfig | None = None
        self._num_classes = 0
        self._hashes: dict[str, str] = {}

    def open(self, config: RunConfig, num_classes: int, indices: Row, resume: bool) -> None:
        """Begin a run in the folder, or continue the run in it.

        Args:
            config: the complete settings.
            num_classes: of the data; it decides settings that an older version did not save.
            indices: the result of :func:`ltat.training.index_record.index_record` for the data.
            resume: whether to continue a run in the folder.

        Raises:
            LtatError: the folder holds a run and ``resume`` is off, its settings or its data differ or are lost, or the
                folder cannot be written.
        """
        self._config, self._num_classes, self._hashes = config, num_classes, hashes(indices)
        self.require_vacant(resume)
        if (self.path / "config.toml").exists():
            self._require_same_settings(from_toml(self.path / "config.toml"))
            self._require_same_data()
        self.write_json("indices.json", indices)
        atomic_write_text(self.path / "config.toml", to_toml(config))

    def require_vacant(self, resume: bool) -> None:
        """Check that the folder holds no run, or with ``resume`` a run that can be continued.

        Raises:
            LtatError: the folder holds a run, or files of a run without its settings.
        """
        if exists(self.path / "config.toml"):
            if not resume:
                raise LtatError(f"{self.path} already holds a run; add --resume to continue it, or name another --out")
            return
        left = [name for name in REMAINS if (self.path / name).exists()]
        if left:
            raise LtatError(
                f"{self.path} holds {left[0]} without the config.toml of its run; restore that, or name another --out"
            )

    def _require_same_settings(self, saved: Tree, of: str = "") -> None:
        assert self._config is not None
        what = f"{self.path / of} is of" if of else f"{self.path} holds"
        if saved.get("method") != self._config.method:
            raise LtatError(
                f"{what} a run of method {saved.get('method')!r}, not {self._config.method!r}; name another --out"
            )
        changed = changed_settings(saved, self._config, self._num_classes)
        if changed:
            raise LtatError(
                f"{what} a run with other settings ({', '.join(changed)}); "
                "resume it with its own, or name another --out"
            )

    def _require_same_data(self) -> None:
        record = self.read_json("indices.json")
        if record is None:
            return
        saved = hashes(record)
        if saved.keys() != (record.keys() if isinstance(record, dict) else None):
            raise LtatError(f"{self.path / 'indices.json'} is not as ltat writes it; delete it")
        self._require_same_hashes(saved, f"{self.path} holds", "in indices.json")

    def _require_same_hashes(self, saved: dict[str, str], what: str, where: str) -> None:
        known = {name: sha256 for name, sha256 in self._hashes.items() if name in saved or name not in LATER}
        changed = [name for name in {**saved, **known} if saved.get(name) != known.get(name)]
        if changed:
            raise LtatError(
                f"{what} a run on other data ({', '.join(changed)} {where}); "
                "restore what it was trained on, or name another --out"
            )

    def record_environment(self, record: Row) -> None:
        """Record the environment in which the run began, and each in which it was resumed."""
        first = self.read_json("env.json")
        if first is None:
            return self.write_json("env.json", record)
        resumed = first.get("resumed", []) if isinstance(first, dict) else None
        if not isinstance(resumed, list) or not all(isinstance(each, dict) for each in resumed):
            raise LtatError(f"{self.path / 'env.json'} is not as ltat writes it; delete it")
        self.write_json("env.json", {**first, "resumed": [*resumed, record]})
        changed = changes([first, *resumed, record])
        if changed:
            self.say(f"warning: resumed elsewhere ({changed}): the last bits may not be those of a run never stopped")

    def write_json(self, name: str, content: object) -> None:
        """Write ``content`` as the JSON file ``name``."""
        atomic_write_text(self.path / name, json.dumps(content, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """The content of the JSON file ``name``, or ``None`` if it does not exist.

        Raises:
            LtatError: the file is not JSON.
        """
        path = self.path / name
        try:
            return json.loads(read_text(path)) if path.exists() else None
        except (OSError, ValueError, RecursionError) as error:
            raise LtatError(f"{path} cannot be read ({error}); delete it") from None

    def append_metrics(self, row: Row) -> None:
        """Append a line to ``metrics.jsonl`` and flush it to the disk.

        Raises:
            LtatError: the file cannot be written.
        """
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise LtatError(
                f"{path} cannot be written ({error.strerror}); make room and continue with --resume"
            ) from None

    def restore_metrics(self, stage: str, rows: list[Row]) -> None:
        """Make the lines of ``stage`` agree with its state: ``rows``, and the existing lines of the epochs before them.

        Lines that a crash cut off or lost are written again, and lines of later epochs are removed.

        Raises:
            LtatError: the file cannot be read or written.
        """
        path = self.path / "metrics.jsonl"
        try:
            lines = read_bytes(path).splitlines() if path.exists() else []
        except OSError as error:
            raise LtatError(f"{path} cannot be read ({error.strerror or error}); move it away") from None
        there = [row for row in map(parsed_row, lines) if row]
        first = rows[0]["epoch"] if rows else 1
        own = [row for row in there if row["stage"] == stage and row["epoch"] < first] + rows
        others = [row for row in there if row["stage"] != stage]
        if lines or own:  # the student's lines follow the teacher's, which is restored first
            atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in others + own))

    def save_state(self, name: str, state: State) -> None:
        """Write the state to resume from, with the run's settings and the hashes of its data."""
        run = {"settings": settings_tree(self._config), "data": self._hashes} if self._config else {}
        write_state(self.path / name, {**state, "run": run})

    def save_weights(self, model: Classifier, name: str, extra: Row, class_names: tuple[str, ...]) -> None:
        """Write the weights of a network and their card, whose free part is ``extra``."""
        save_model(model, self.path / name, extra=extra, class_names=class_names)

    def load_state(self, name: str) -> State | None:
        """The newest usable state, or ``None`` if the folder has no state; loading never executes code.

        Raises:
            LtatError: every state in the folder is damaged, or of another run.
        """
        newest = newest_state(self.path / name)
        if newest is None:
            return None
        state, remark = newest
        if remark:
            self.say(f"warning: {remark}")
        run = state.get("run")
        if run and self._config is not None:  # states of versions before the checksum do not name their run
            self._require_same_settings(run["settings"], of=name)
            self._require_same_hashes(run["data"], f"{self.path / name} is of", "are others")
        return state


class SharedRunFolder(RunFolder):
    """The folder of a run as the other ranks than 0 see it: they read what rank 0 has written, and write nothing."""

    def open(self, config: RunConfig, num_classes: int, indices: Row, resume: bool) -> None:
        """Read the run in the folder, which rank 0 has opened.

        Raises:
            LtatError: the folder is not that of rank 0, or its settings or data are others.
        """
        self._config, self._num_classes, self._hashes = config, num_classes, hashes(indices)
        if not (self.path / "config.toml").exists():
            raise LtatError(f"{self.path} is empty on {platform.node()}; name a folder that all machines share")
        self._require_same_settings(from_toml(self.path / "config.toml"))
        self._require_same_data()

    def load_state(self, name: str) -> State | None:
        """Nothing: rank 0 tells its state, and may have to put the state before it in its place."""

    def record_environment(self, record: Row) -> None:
        """Nothing: the environment is that of rank 0."""

    def write_json(self, name: str, content: object) -> None:
        """Nothing."""

    def append_metrics(self, row: Row) -> None:
        """Nothing."""

    def restore_metrics(self, stage: str, rows: list[Row]) -> None:
        """Nothing."""

    def save_state(self, name: str, state: State) -> None:
        """Nothing."""

    def save_weights(self, model: Classifier, name: str, extra: Row, class_names: tuple[str, ...]) -> None:
        """Nothing."""


def settings_tree(config: RunConfig) -> Tree:
    """The settings as in ``config.toml``."""
    return config.model_dump(exclude_none=True, by_alias=True, mode="json")


def changes(environments: list[Row]) -> str:
    """The differences between the environments of one run that can change its figures; empty without any."""
    compared = {
        "torch": [_of(record, "packages").get("torch") for record in environments],
        "threads": [record.get("threads") for record in environments],
        "ranks": [record.get("ranks", 1) for record in environments],
        "device": [record.get("gpu") or record.get("device") for record in environments],
        "native kernels": [_of(record, "native").get("isa") for record in environments],
    }
    differing = {name: dict.fromkeys(map(str, values)) for name, values in compared.items()}
    return "; ".join(f"{name} {', then '.join(values)}" for name, values in differing.items() if len(values) > 1)


def _of(record: Row, name: str) -> Row:
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def hashes(indices: object) -> dict[str, str]:
    """The checksum of each list of images and each given network."""
    entries = indices.items() if isinstance(indices, dict) else ()
    return {name: entry["sha256"] for name, entry in entries if isinstance(entry, dict) and "sha256" in entry}


def parsed_row(line: bytes) -> Row | None:
    """A line of ``metrics.jsonl``; ``None`` if it is not whole."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(row, dict) and isinstance(row.get("stage"), str) and isinstance(row.get("epoch"), int)
    return row if known else None


def changed_settings(saved: Tree, config: RunConfig, num_classes: int) -> list[str]:
    """The dotted names of the settings in which ``saved``, of the same method, differs from ``config``.

    What an older version did not know has its default. Those that may change on resuming are left out.
    """
    kind = type(config)
    standing = resolve(Asked(validated(kind, with_new_names(saved, kind))), num_classes)
    return differing_settings(standing.model_dump(mode="json"), config.model_dump(mode="json"))


def differing_settings(before: Row, after: Row, prefix: str = "") -> list[str]:
    """The dotted names of the settings that differ, without those that may change on resuming."""
    names: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            names += differing_settings(old, new, f"{prefix}{key}.")
        elif old != new:
            names.append(f"{prefix}{key}")
    return [name for name in names if not may_change(name)]


def may_change(name: str) -> bool:
    """Whether the setting may change on resuming."""
    return name.startswith(FREE_TO_CHANGE) and name not in NOT_FREE
