"""Small .beton files for tests, whole and damaged."""

import json
from pathlib import Path

import numpy as np

from ltat.data import Split
from ltat.data.beton import BetonImages, read_beton, write_beton
from ltat.data.beton.format import ALLOCATION, DESCRIPTOR, FIELDS, HEADER, metadata_type
from ltat.data.beton.library import load_ffcv
from ltat.data.beton.sidecar import file_sha256, sidecar_path

NAMES = ("ant", "bee", "cat")
N = 50


def noise(height: int = 7, width: int = 6, channels: int = 3, n: int = N, seed: int = 0) -> Split:
    """Random images of three classes (30, 15 and 5 in a hundred), taken from a larger set."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    labels = np.searchsorted([0.6, 0.9], np.arange(n) / n, side="right").astype(np.int64)
    return Split(images, labels, 3, 3 * np.arange(n) + 1)


def stored(split: Split, path: Path, **settings) -> Split:
    """The split, written and read back, its images in the file."""
    load_ffcv()  # once in this process; else the writer's process imports it each time
    write_beton(split, path, NAMES, **({"name": "noise"} | settings))
    return opened(path)


def opened(path: Path) -> Split:
    """The split of a .beton file."""
    beton = read_beton(path)
    return Split(BetonImages.of(beton), beton.labels, len(beton.sidecar.class_names), beton.indices)


def sign(path: Path, **changes) -> None:
    """Make the sidecar agree with a file that was altered: what remains is what the file itself says."""
    beside = sidecar_path(path)
    fields = json.loads(beside.read_text()) | {"size": path.stat().st_size, "sha256": file_sha256(path)} | changes
    beside.write_text(json.dumps(fields))


class Opened:
    """Views into the parts of a .beton file, to be altered in place."""

    def __init__(self, path: Path) -> None:
        self.content = np.memmap(path, mode="r+")
        self.header = self.content[: HEADER.itemsize].view(HEADER)
        rows = HEADER.itemsize + len(FIELDS) * DESCRIPTOR.itemsize
        self.fields = self.content[HEADER.itemsize : rows].view(DESCRIPTOR)
        kind = metadata_type(self.fields["type"][0] == 2)
        self.rows = self.content[rows : rows + int(self.header["samples"][0]) * kind.itemsize].view(kind)
        self.table = self.content[int(self.header["table"][0]) :].view(ALLOCATION)
