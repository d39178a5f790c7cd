"""The state to resume from, in a file with a checksum; the previous state is kept beside it.

    ltat state 1 SHA-256-OF-THE-REST
    the output of torch.save

Both files are verified before torch reads them. States of versions before the checksum begin like torch's own files; no
flipped bit turns one beginning into the other.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from ltat.errors import LtatError
from ltat.files import read_bytes, replacing
from ltat.training.finite import LIMIT, non_finite_tensor

State = dict[str, Any]
MARK = b"ltat state 1 "
TORCH_MARK = b"PK\x03\x04"  # of a zip file
PARTS = {"epoch": int, "model": dict, "optimizer": dict, "scaler": dict, "rows": list, "best": dict}


class Unusable(Exception):
    """A state that cannot be resumed from; the message is the reason."""


def before(path: Path) -> Path:
    """The file of the state before the newest: ``state-before.pt`` beside ``state.pt``."""
    return path.with_name(f"{path.stem}-before{path.suffix}")


def write_state(path: Path, state: State) -> None:
    """Write a state of tensors, numbers, strings and containers of them; the previous one is kept as :func:`before`.

    At any moment one of the two is complete. Raises ``LtatError`` if they cannot be written.
    """
    path = path.resolve()  # keeps a link, and puts the previous state beside the newest
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            file.write(MARK + hashlib.sha256(content).hexdigest().encode() + b"\n")
            file.write(content)
        if path.exists():
            os.replace(path, before(path))


def read_state(path: Path) -> State:
    """Read and verify one state file; loading never executes code.

    Raises:
        Unusable: the file is missing or damaged, or its content is not a training state.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        raise Unusable("it is missing") from None
    except OSError as error:
        raise Unusable(f"it cannot be read: {error.strerror or error}") from None
    try:
        state = torch.load(io.BytesIO(_verified(data)), map_location="cpu", weights_only=True)
        _check_content(state)
    except Unusable:
        raise
    except Exception as error:  # torch raises many types for a broken file, with messages that guess at the cause
        raise Unusable(f"it is not a training state: {type(error).__name__}") from None
    return dict(state)


def is_unsigned(path: Path) -> bool:
    """Whether the state was written before states had a checksum."""
    with path.open("rb") as file:
        return file.read(len(TORCH_MARK)) == TORCH_MARK


def _verified(data: bytes) -> memoryview:
    if data.startswith(TORCH_MARK):
        return memoryview(data)
    end = len(MARK) + 64
    head, content = data[: end + 1], memoryview(data)[end + 1 :]
    if head != MARK + hashlib.sha256(content).hexdigest().encode() + b"\n":
        raise Unusable("its checksum is wrong")
    return content


def _check_content(state: State) -> None:
    if "row" in state:  # a former version kept only the newest row
        state["rows"] = [state.pop("row")]
    for name, kind in PARTS.items():
        if not isinstance(state.get(name), kind) or isinstance(state.get(name), bool):
            raise Unusable(f"its {name} is not of type {kind.__name__}")
    run = state.get("run")
    if run and not (isinstance(run["settings"], dict) and isinstance(run["data"], dict)):
        raise Unusable("it does not name its run")
    running = state.get("running", {})
    if running and not (type(running["steps"]) is int and running["steps"] >= 0):
        raise Unusable(f"it is of step {running['steps']!r} of an epoch")
    epochs = [row["epoch"] for row in state["rows"]]
    first = epochs[0] if epochs else 1
    if epochs != list(range(first, state["epoch"] + 1)) or first < 1 or not (epochs or steps_of(state)):
        raise Unusable(f"its rows are not those of {state['epoch']} epochs")
    if not -1 <= state["best"]["score"] <= 100 or not 0 <= state["best"]["epoch"] <= state["epoch"]:
        raise Unusable("its best epoch is not one of its epochs")
    wild = non_finite_tensor({name: state.get(name, {}) for name in ("model", "optimizer", "average")})
    if wild:
        raise Unusable(f"{wild} is not finite, or above {LIMIT:g}")


def steps_of(state: State) -> int:
    """The steps that were taken after the last complete epoch; versions before 'running' wrote none of them."""
    return int(state.get("running", {}).get("steps", 0))


def newest_state(path: Path) -> tuple[State, str | None] | None:
    """The newest usable state, and a warning about it or ``None``; ``None`` alone if there is no state file.

    If the newest state is damaged, the one before it replaces it, so that the next write does not remove the only good
    one.

    Raises:
        LtatError: there are state files and none can be used.
    """
    path = path.resolve()
    try:
        state = read_state(path)
        return state, f"{path} has no checksum (an older version wrote it)" if is_unsigned(path) else None
    except Unusable as error:
        reason = str(error)
    older = before(path)
    if not older.exists():
        if not path.exists():
            return None
        raise LtatError(f"the training state {path} cannot be used ({reason}); delete it to start the stage over")
    try:
        state = read_state(older)
    except Unusable as error:
        raise LtatError(
            f"neither the training state {path} ({reason}) nor {older.name} ({error}) can be used; "
            "delete both to start the stage over"
        ) from None
    os.replace(older, path)
    step = f" and {steps_of(state)} steps" if steps_of(state) else ""
    return (
        state,
        f"the training state {path} cannot be used ({reason}); "
        f"continuing from the state of epoch {state['epoch']}{step}",
    )
