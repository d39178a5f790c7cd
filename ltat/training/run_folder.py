"""The folder that explains a run: its settings, environment, data indices, metrics, weights and state."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ltat.config import RunConfig, from_toml, to_toml
from ltat.config.loading import validated
from ltat.errors import LtatError
from ltat.files import atomic_write_bytes, atomic_write_text

Row = dict[str, Any]
FREE_TO_CHANGE = ("train.device", "loader.", "eval.")  # on resuming: they change nothing that was trained
NOT_FREE = ("eval.tau",)  # but the choice of the best checkpoint


@dataclass(frozen=True)
class StageFiles:
    """The names of a stage's files in the run folder: newest and best weights, and the state to resume from."""

    last: str
    best: str
    state: str


STUDENT_FILES = StageFiles(last="last", best="best", state="state.pt")
TEACHER_FILES = StageFiles(last="teacher", best="teacher-best", state="teacher-state.pt")


class RunFolder:
    """A run's folder; every file but the growing ``metrics.jsonl`` is written atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, config: RunConfig, indices: Row, resume: bool) -> None:
        """Begin a run here, or continue the one that stands here.

        Args:
            config: the resolved settings.
            indices: what :func:`ltat.training.task.index_record` tells of the data.
            resume: whether a run that stands here is to be continued.

        Raises:
            LtatError: a run stands here and ``resume`` is off, its settings or its data are other ones, or the folder
                cannot be written.
        """
        stands = (self.path / "config.toml").exists()
        if stands and not resume:
            raise LtatError(f"{self.path} already holds a run; add --resume to continue it, or name another --out")
        if stands:
            self._require_same_settings(config)
            self._require_same_data(indices)
        self.write_json("indices.json", indices)
        atomic_write_text(self.path / "config.toml", to_toml(config))

    def _require_same_settings(self, config: RunConfig) -> None:
        saved = from_toml(self.path / "config.toml")
        if saved.get("method") != config.method:
            raise LtatError(
                f"{self.path} holds a run of method {saved.get('method')!r}, not {config.method!r}; name another --out"
            )
        before = validated(type(config), saved)
        changed = differing_settings(before.model_dump(mode="json"), config.model_dump(mode="json"))
        if changed:
            raise LtatError(
                f"{self.path} holds a run with other settings ({', '.join(changed)}); "
                "resume it with its own, or name another --out"
            )

    def _require_same_data(self, indices: Row) -> None:
        before = self.read_json("indices.json") or indices
        hashes = [{name: entry["sha256"] for name, entry in record.items()} for record in (before, indices)]
        changed = [name for name in {**before, **indices} if hashes[0].get(name) != hashes[1].get(name)]
        if changed:
            raise LtatError(
                f"{self.path} holds a run on other data ({', '.join(changed)} in indices.json); "
                "restore what it was trained on, or name another --out"
            )

    def record_environment(self, record: Row) -> None:
        """Keep the environment in which the run began, and add each in which it was resumed."""
        first = self.read_json("env.json")
        if first is None:
            self.write_json("env.json", record)
        else:
            self.write_json("env.json", {**first, "resumed": [*first.get("resumed", []), record]})

    def write_json(self, name: str, content: object) -> None:
        """Write ``content`` as the JSON file ``name``."""
        atomic_write_text(self.path / name, json.dumps(content, indent=2) + "\n")

    def read_json(self, name: str) -> Any:
        """The content of the JSON file ``name``, or ``None`` where there is none.

        Raises:
            LtatError: it is not JSON.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        except (OSError, ValueError) as error:
            raise LtatError(f"{path} cannot be read ({error}); delete it") from None

    def append_metrics(self, row: Row) -> None:
        """Add one line to ``metrics.jsonl``.

        Raises:
            LtatError: it cannot be written.
        """
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise LtatError(
                f"{path} cannot be written ({error.strerror}); make room and continue with --resume"
            ) from None

    def forget_metrics_after(self, stage: str, epoch: int) -> None:
        """Drop the lines of ``stage`` beyond ``epoch``, and an unfinished last line: resuming writes them again."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        rows = [row for row in map(_parsed, path.read_text(encoding="utf-8").splitlines()) if row]
        kept = [row for row in rows if row["stage"] != stage or row["epoch"] <= epoch]
        atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in kept))

    def save_state(self, name: str, state: dict[str, Any]) -> None:
        """Write the state to resume from: tensors, numbers, strings and containers of them."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        atomic_write_bytes(self.path / name, buffer.getvalue())

    def load_state(self, name: str) -> dict[str, Any] | None:
        """The saved state, or ``None`` where there is none; loading never executes code.

        Raises:
            LtatError: the file is broken or holds something else.
        """
        path = self.path / name
        if not path.exists():
            return None
        try:
            state = dict(torch.load(path, map_location="cpu", weights_only=True))
            if not isinstance(state["epoch"], int):
                raise TypeError
            return state
        except Exception as error:  # torch raises many types for a broken file
            reason = type(error).__name__  # torch's own words are long and guess at causes
            raise LtatError(f"the training state {path} cannot be read ({reason}); delete it to start over") from None


def _parsed(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and {"stage", "epoch"} <= row.keys() else None


def differing_settings(before: Row, after: Row, prefix: str = "") -> list[str]:
    """The dotted names whose values differ, but for those that are free to change."""
    names: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            names += differing_settings(old, new, f"{prefix}{key}.")
        elif old != new:
            names.append(f"{prefix}{key}")
    return [name for name in names if name in NOT_FREE or not name.startswith(FREE_TO_CHANGE)]
