"""Checks of a .beton file: bytes of unknown origin, verified from end to end before they are used.

FFCV's own reader checks nothing, and its loader then copies from whatever address the file names. The layout, all of
it little-endian: a header; one descriptor per field; one row of metadata per sample, which for an image holds the
address of its bytes; padding to the next page; whole pages of images; and up to the end of the file the allocation
table, which holds the address and size of every sample's bytes.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ltat.data.beton.sidecar import REMEDY, Sidecar, file_sha256, read_sidecar
from ltat.data.split import check_labels
from ltat.errors import LtatError

VERSION = 2
SMALLEST_PAGE = 1 << 21
FIELDS = ("image", "label", "index")
MODES = {"jpeg": 0, "raw": 1}

HEADER = np.dtype(
    [("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"), ("table", "<u8")], align=True
)
DESCRIPTOR = np.dtype([("type", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
ALLOCATION = np.dtype([("sample", "<u8"), ("pointer", "<u8"), ("size", "<u8")])
_COLOUR = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("pointer", "<u8")])
_INTEGER_TYPE, _COLOUR_TYPE, _ARRAY_TYPE = 1, 2, 4  # FFCV's IntField, RGBImageField, NDArrayField


class Stamp(NamedTuple):
    """Enough of a file's identity to notice that it was replaced."""

    size: int
    modified: int  # nanoseconds


@dataclass(frozen=True, eq=False)
class Beton:
    """A .beton file that was found to be whole.

    Attributes:
        path: the file.
        stamp: the file's size and time when it was checked.
        sidecar: its contents as recorded when it was written.
        pointers: int64 [N], where the bytes of each image begin.
        sizes: int64 [N], how many they are.
        labels: int64 [N].
        indices: int64 [N], position of each image in the set it was taken from.
    """

    path: Path
    stamp: Stamp
    sidecar: Sidecar
    pointers: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


def read_beton(path: Path) -> Beton:
    """Check a .beton file and its sidecar; the images are not loaded.

    FFCV is not needed, and nothing in the file is executed.

    Raises:
        LtatError: a missing, truncated, altered or foreign file, a wrong checksum, or a label out of range.
    """
    sidecar = read_sidecar(path)
    try:
        stamp = stamp_of(path)
        if stamp.size != sidecar.size:
            raise _broken(path, f"it has {stamp.size} bytes where {sidecar.size} were written")
        found = file_sha256(path)
        if found != sidecar.sha256:
            raise _broken(path, f"its SHA-256 is {found[:12]}… where {sidecar.sha256[:12]}… was written")
        return look_through(path, sidecar)
    except OSError as error:
        raise LtatError(f"{path} cannot be read ({error.strerror or error}); {REMEDY}") from error


def stamp_of(path: Path) -> Stamp:
    """The file's size and time of change."""
    status = os.stat(path)
    return Stamp(status.st_size, status.st_mtime_ns)


def metadata_type(colour: bool) -> np.dtype:
    """One row of metadata: the image's (colour images have another field type), the label, the index."""
    return np.dtype([("image", _COLOUR if colour else "<u8"), ("label", "<i8"), ("index", "<i8")], align=True)


def data_start(samples: int, colour: bool, page_size: int) -> int:
    """Where the first page begins."""
    metadata_end = HEADER.itemsize + len(FIELDS) * DESCRIPTOR.itemsize + samples * metadata_type(colour).itemsize
    return -(-metadata_end // page_size) * page_size


def look_through(path: Path, sidecar: Sidecar) -> Beton:
    """Compare the file's records of the place and kind of every image with the sidecar.

    Raises:
        LtatError: anything that does not fit.
    """
    content = np.memmap(path, mode="r")
    header = _header(path, content, sidecar)
    _check_fields(path, content, sidecar)
    start = data_start(sidecar.images, sidecar.colour, int(header["page_size"]))
    pointers, sizes = _table(path, content, header, start, sidecar.images)
    offset = HEADER.itemsize + len(FIELDS) * DESCRIPTOR.itemsize
    rows = np.frombuffer(content, metadata_type(sidecar.colour), sidecar.images, offset)
    _check_images(path, rows["image"], pointers, sizes, sidecar)
    labels, indices = (rows[name].astype(np.int64) for name in ("label", "index"))
    try:
        check_labels(labels, len(sidecar.class_names))
    except LtatError as error:
        raise _broken(path, str(error).partition(";")[0]) from error
    if np.bincount(labels, minlength=len(sidecar.counts)).tolist() != list(sidecar.counts):
        raise _broken(path, "its labels are not those its sidecar counts")
    return Beton(path, stamp_of(path), sidecar, pointers, sizes, labels, indices)


def _header(path: Path, content: np.ndarray, sidecar: Sidecar) -> np.ndarray:
    least = HEADER.itemsize + len(FIELDS) * DESCRIPTOR.itemsize
    if len(content) < least:
        raise _broken(path, f"its {len(content)} bytes are too few for a header")
    header = np.frombuffer(content, HEADER, 1)[0]
    if header["version"] != VERSION or header["fields"] != len(FIELDS):
        raise _broken(path, f"it is of version {header['version']} with {header['fields']} fields, not ours")
    page_size = int(header["page_size"])
    if page_size < SMALLEST_PAGE or page_size & (page_size - 1):
        raise _broken(path, f"its page size of {page_size} bytes is not a power of 2 from {SMALLEST_PAGE} on")
    if header["samples"] != sidecar.images:
        raise _broken(path, f"it has {header['samples']} images and its sidecar counts {sidecar.images}")
    return header


def _check_fields(path: Path, content: np.ndarray, sidecar: Sidecar) -> None:
    found = np.frombuffer(content, DESCRIPTOR, len(FIELDS), HEADER.itemsize)
    expected = [_COLOUR_TYPE if sidecar.colour else _ARRAY_TYPE, _INTEGER_TYPE, _INTEGER_TYPE]
    names = [name.tobytes().rstrip(b"\0") for name in found["name"]]
    if found["type"].tolist() != expected or names != [name.encode() for name in FIELDS]:
        raise _broken(path, f"its fields are not an image, a label and an index (types {found['type'].tolist()})")
    if not sidecar.colour and found["arguments"][0].tobytes() != _array_arguments(sidecar.shape):
        raise _broken(path, f"its images are not uint8 arrays of shape {sidecar.shape}")


def _array_arguments(shape: tuple[int, ...]) -> bytes:
    element = json.dumps(np.dtype("u1").descr).encode()
    numbers = np.zeros(33, "<u8")
    numbers[: len(shape)], numbers[32] = shape, len(element)
    return (numbers.tobytes() + element).ljust(1024, b"\0")


def _table(
    path: Path, content: np.ndarray, header: np.ndarray, start: int, samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pointers and sizes of the samples, each within the pages."""
    end = int(header["table"])
    pages = end - start
    if pages <= 0 or pages % int(header["page_size"]) or end + samples * ALLOCATION.itemsize != len(content):
        raise _broken(path, "its pages and its allocation table do not fill the file")
    table = np.frombuffer(content, ALLOCATION, samples, end)
    table = table[np.argsort(table["sample"], kind="stable")]
    if not np.array_equal(table["sample"], np.arange(samples)):
        raise _broken(path, "its allocation table does not hold every image once")
    pointers, sizes = table["pointer"], table["size"]
    outside = (pointers < start) | (pointers > end) | (sizes > end - np.minimum(pointers, np.uint64(end)))
    if outside.any():
        raise _broken(path, f"the bytes of image {np.argmax(outside)} lie outside its pages")
    return pointers.astype(np.int64), sizes.astype(np.int64)


def _check_images(path: Path, images: np.ndarray, pointers: np.ndarray, sizes: np.ndarray, sidecar: Sidecar) -> None:
    height, width, channels = sidecar.shape
    columns: dict[str, tuple[np.ndarray, np.ndarray | int]] = {}  # by name: found, expected
    if sidecar.colour:
        columns |= {"height": (images["height"], height), "width": (images["width"], width)}
        columns |= {"mode": (images["mode"], MODES[sidecar.mode])}
    columns["address"] = (images["pointer"] if sidecar.colour else images, pointers)
    if sidecar.mode == "raw":
        columns["size"] = (sizes, height * width * channels)
    for name, (found, expected) in columns.items():
        wrong = np.flatnonzero(found != expected)
        if len(wrong):
            raise _broken(path, f"image {wrong[0]} has the {name} {found[wrong[0]]}, which cannot be")


def _broken(path: Path, what: str) -> LtatError:
    return LtatError(f"{path} is damaged or not written by ltat: {what}; {REMEDY}")
