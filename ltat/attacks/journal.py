"""The journal of a long attack: every finished batch on disk, so that an interruption costs one batch."""

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ltat.errors import LtatError
from ltat.files import atomic_write_bytes


@dataclass(frozen=True)
class Piece:
    """What one batch of one stage found.

    Attributes:
        indices: int64 [M], images that were fooled.
        x_adv: fp32 [M, ch, H, W], their adversarial images.
        messages: warnings of the attack.
    """

    indices: Tensor
    x_adv: Tensor
    messages: tuple[str, ...]


class Journal:
    """A folder of pieces that belong to one fingerprint; without a folder it keeps nothing.

    Raises:
        LtatError: a piece was written under another fingerprint, or is not a piece.
    """

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        if folder is not None and folder.exists() and not folder.is_dir():
            raise LtatError(f"{folder} is a file: give a folder for the attack's state")

    def load(self, name: str) -> Piece | None:
        """The piece of that name, or None if it is not there yet."""
        if self.folder is None or not (self.folder / f"{name}.safetensors").exists():
            return None
        path = self.folder / f"{name}.safetensors"
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                piece = Piece(
                    file.get_tensor("indices"),
                    file.get_tensor("x_adv"),
                    tuple(json.loads(header.get("messages", "[]"))),
                )
        except (SafetensorError, OSError, ValueError) as error:
            raise LtatError(f"{path} is damaged: delete the folder {self.folder} to start over") from error
        if header.get("fingerprint") != self.fingerprint:
            raise LtatError(
                f"{path} belongs to another model, data or setting: delete the folder {self.folder} "
                "or choose another one"
            )
        return piece

    def save(self, name: str, piece: Piece) -> None:
        """Writes the piece atomically."""
        if self.folder is None:
            return
        header = {"fingerprint": self.fingerprint, "messages": json.dumps(piece.messages)}
        tensors = {"indices": piece.indices.cpu(), "x_adv": piece.x_adv.cpu().contiguous()}
        data = safetensors.torch.save(tensors, metadata=header)
        atomic_write_bytes(self.folder / f"{name}.safetensors", data)
