"""The small JSON file beside a .beton file: what was written, and its checksum."""

import hashlib
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ltat.errors import LtatError
from ltat.files import read_bytes

FORMAT: Final = 1
PREPARE = "ltat data prepare --format beton"
REMEDY = f"write it again with {PREPARE}"
_LARGEST = 1 << 26  # bytes of JSON; a million class names are far less

Pixels = Annotated[int, Field(ge=1, le=65535)]


class Sidecar(BaseModel):
    """What stands in ``<name>.beton.json``.

    Attributes:
        format: version of this layout.
        dataset: name of the dataset.
        part: which part of it this is: the file's name without its ending, when it was written.
        mode: how the images are stored, "raw" or "jpeg".
        shape: height, width, channels of every image.
        class_names: one per class.
        counts: images per class; a class may be empty.
        size: bytes of the .beton file.
        sha256: of the whole .beton file, hex.
        ltat: version that wrote it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1]
    dataset: str
    part: str
    mode: Annotated[str, Field(pattern="^(raw|jpeg)$")]
    shape: Annotated[tuple[Pixels, Pixels, Pixels], Field(strict=False)]
    class_names: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    counts: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]
    size: Annotated[int, Field(ge=1)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    ltat: str

    @model_validator(mode="after")
    def _is_consistent(self) -> "Sidecar":
        if len(self.counts) != len(self.class_names):
            raise ValueError(f"{len(self.counts)} counts for {len(self.class_names)} class names")
        if self.images == 0:
            raise ValueError("no class has an image")
        if self.mode == "jpeg" and not self.colour:
            raise ValueError(f"jpeg images with {self.shape[2]} channels")
        return self

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(self.counts)

    @property
    def colour(self) -> bool:
        """Whether the images are FFCV's RGB images; others are arrays to it."""
        return self.shape[2] == 3


def sidecar_path(path: Path) -> Path:
    """Where the sidecar of a .beton file lies."""
    return path.with_name(f"{path.name}.json")


def read_sidecar(path: Path) -> Sidecar:
    """The sidecar of the .beton file at ``path``.

    Raises:
        LtatError: it is missing, cannot be read, or is not a sidecar.
    """
    beside = sidecar_path(path)
    if not path.is_file():  # a pipe would be waited for
        raise LtatError(f"there is no file {path}; check --data-dir, or write it with {PREPARE}")
    if not beside.is_file():
        raise LtatError(f"{path} has no {beside.name} beside it, so it cannot be verified; {REMEDY}")
    try:
        text = read_bytes(beside, _LARGEST)
    except OSError as error:
        raise LtatError(f"{beside} cannot be read ({error.strerror}); {REMEDY}") from error
    try:
        return Sidecar.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise LtatError(f"{beside} is not the sidecar of a .beton file ({where}: {first['msg']}); {REMEDY}") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file (hex), read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
