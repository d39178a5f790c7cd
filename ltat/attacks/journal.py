"""The journal of a long attack: every finished batch on disk, so that an interruption costs one batch."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ltat.errors import LtatError
from ltat.files import atomic_write_bytes, exists, require_file


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


class Damaged(Exception):
    """A piece that cannot be trusted; says why."""


class Journal:
    """A folder of pieces that belong to one fingerprint; without a folder it keeps nothing.

    Raises:
        LtatError: a file stands in the folder's place.
    """

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint
        if folder is not None and folder.exists() and not folder.is_dir():
            raise LtatError(f"{folder} is a file; give a folder for the attack's state")

    def load(self, name: str) -> Piece | None:
        """The piece of that name, or None if it is not there yet.

        Raises:
            Damaged: it is not what was written.
            LtatError: it was written under another fingerprint.
        """
        if self.folder is None or not exists(self.folder / f"{name}.safetensors"):
            return None
        path = self.folder / f"{name}.safetensors"
        require_file(path)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                piece = Piece(
                    file.get_tensor("indices"), file.get_tensor("x_adv"), tuple(json.loads(header["messages"]))
                )
        except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise Damaged("it cannot be read") from error
        if header.get("sha256") != self._checksum(header.get("fingerprint", ""), name, piece):
            raise Damaged("its checksum does not fit")
        if header["fingerprint"] != self.fingerprint:
            raise LtatError(
                f"{path} belongs to another model, data or setting; delete the folder {self.folder} "
                "or choose another one"
            )
        return piece

    def save(self, name: str, piece: Piece) -> None:
        """Writes the piece atomically."""
        if self.folder is None:
            return
        header = {
            "fingerprint": self.fingerprint,
            "messages": json.dumps(piece.messages),
            "sha256": self._checksum(self.fingerprint, name, piece),
        }
        tensors = {"indices": piece.indices.cpu(), "x_adv": piece.x_adv.cpu().contiguous()}
        data = safetensors.torch.save(tensors, metadata=header)
        atomic_write_bytes(self.folder / f"{name}.safetensors", data)

    @staticmethod
    def _checksum(fingerprint: str, name: str, piece: Piece) -> str:
        head = [fingerprint, name, list(piece.messages)]
        digest = hashlib.sha256()
        for tensor in (piece.indices, piece.x_adv):
            head.append(f"{tensor.dtype} {tuple(tensor.shape)}")
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        digest.update(json.dumps(head).encode())
        return digest.hexdigest()
