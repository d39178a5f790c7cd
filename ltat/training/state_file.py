"""The state to resume from, in a file that shows any damage to it, with the state before it kept beside it.

    ltat state 1 SHA-256-OF-THE-REST
    what torch.save writes

The two files are verified before torch reads a byte of them. States of versions before the checksum begin as torch's
own files do; no flipped bit turns one beginning into the other.
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
    """A state that cannot be resumed from; the text says why."""


def before(path: Path) -> Path:
    """Where the state before the newest stands: ``state-before.pt`` beside ``state.pt``."""
    return path.with_name(f"{path.stem}-before{path.suffix}")


def write_state(path: Path, state: State) -> None:
    """Write a state of tensors, numbers, strings and containers of them; the one that stood there is kept.

    At any moment one of the two is whole. Raises ``LtatError`` where they cannot be written.
    """
    path = path.resolve()  # a link stays, and the state before lies where the newest does
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
    """One state file, verified; loading never executes code.

    Raises:
        Unusable: it is missing, damaged, or holds something else or figures that no training reaches.
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
    except Exception as error:  # torch raises many types for a broken file, in words that guess at causes
        raise Unusable(f"it is no training state: {type(error).__name__}") from None
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
    if "row" in state:  # of a version that kept the newest row alone
        state["rows"] = [state.pop("row")]
    for name, kind in PARTS.items():
        if not isinstance(state.get(name), kind) or isinstance(state.get(name), bool):
            raise Unusable(f"its {name} is no {kind.__name__}")
    run = state.get("run")
    if run and not (isinstance(run["settings"], dict) and isinstance(run["data"], dict)):
        raise Unusable("it does not name its run")
    epochs = [row["epoch"] for row in state["rows"]]
    if not epochs or epochs != list(range(epochs[0], state["epoch"] + 1)) or epochs[0] < 1:
        raise Unusable(f"its rows are not those of {state['epoch']} epochs")
    if not -1 <= state["best"]["score"] <= 100 or not 0 <= state["best"]["epoch"] <= state["epoch"]:
        raise Unusable("its best epoch is none of it")
    wild = non_finite_tensor({name: state.get(name, {}) for name in ("model", "optimizer", "average")})
    if wild:
        raise Unusable(f"{wild} is not finite, or beyond {LIMIT:g}")


def newest_state(path: Path) -> tuple[State, str | None] | None:
    """The newest state that can be used, and what a person is to know of it; ``None`` where there is none at all.

    Where the newest is damaged, the one before it takes its place, so that the next write cannot push out the only
    good one.

    Raises:
        LtatError: there are states and none can be used.
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
    return (
        state,
        f"the training state {path} cannot be used ({reason}): going on from the one of epoch {state['epoch']}",
    )
