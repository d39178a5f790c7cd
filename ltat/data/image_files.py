"""Image files that are decoded on access."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from ltat.data.images import ImageStore
from ltat.data.split import Dataset, Split
from ltat.errors import LtatError
from ltat.files import require_file

T = TypeVar("T")

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")
"""The formats that are decoded, found by content; never one that is a program, such as EPS."""

MODES = {1: "L", 3: "RGB"}
_LOSSLESS = {"1": 1, "L": 1, "RGB": 3, "P": 3}  # Pillow's modes that 1 or 3 channels hold without loss
_DEEP = ("I", "F")  # Pillow's modes of more than 8 bits begin so
_LARGEST = 4096  # pixels; a slip of the pen must not fill the memory
_MOST_PIXELS = 89_478_485  # of a file, or of it once scaled: where Pillow begins to warn
_GIANT = 1 << 24  # pixels of a file, from which on one is decoded at a time
_GIANTS = threading.Lock()
_THREADS = 4
_READ_TOGETHER = 64  # headers per call of a worker: for a single one, handing over costs more than reading

Samples = Sequence[tuple[str, int]]
"""Paths and labels, as in torchvision's ``ImageFolder.samples``."""


class Header(NamedTuple):
    """The properties of an image that its header gives, without decoding a pixel."""

    height: int
    width: int
    mode: str


class ImageFiles(ImageStore):
    """Images of one shape, each in a file.

    Args:
        paths: bytes [N], as the file system names them.
        image_shape: height, width, channels (1 or 3) of every image served.
        fit: scale each image and take the centre of this size; otherwise every file must have it already.
    """

    def __init__(self, paths: np.ndarray, image_shape: tuple[int, int, int], fit: bool) -> None:
        self.paths, self.fit = paths, fit
        self.shape = (len(paths), *image_shape)

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Decode the files at these positions, several at a time: uint8 [B, H, W, ch].

        Raises:
            LtatError: a file that cannot be decoded, or that changed its size since the set was opened.
        """
        images = np.empty((len(positions), *self.shape[1:]), dtype=np.uint8)

        def fill(places: Sequence[int]) -> None:
            for place in places:
                images[place] = self._decode(os.fsdecode(self.paths[positions[place]]))

        _in_threads(fill, [range(thread, len(positions), _THREADS) for thread in range(_THREADS)])
        return images

    def subset(self, positions: np.ndarray) -> "ImageFiles":
        """The files at these positions; none is opened."""
        height, width, channels = self.shape[1:]
        return ImageFiles(self.paths[positions], (height, width, channels), self.fit)

    def _decode(self, path: str) -> np.ndarray:
        height, width, channels = self.shape[1:]
        with opened(path) as image, _GIANTS if image.width * image.height > _GIANT else nullcontext():
            converted = image if image.mode == MODES[channels] else image.convert(MODES[channels])
            if self.fit:
                converted = _centre_square(converted, height)
            pixels = np.asarray(converted)
        if pixels.shape[:2] != (height, width):
            raise LtatError(f"{path} is {_size(pixels.shape)} now and was {height}x{width} before; load the set again")
        return pixels.reshape(height, width, channels)


def files_dataset(
    name: str,
    train: Samples,
    test: Samples,
    class_names: Sequence[str],
    image_size: int | None = None,
    channels: int | None = None,
    passed_over: Mapping[str, int] | None = None,
) -> Dataset:
    """A dataset of image files; every header is read now, no pixel.

    Args:
        name: the dataset's.
        train: paths and labels of the training images.
        test: the same of the test images.
        class_names: of the C classes.
        image_size: scale the shorter side of each image to this (bilinear with antialiasing) and take the centre
            square, as torchvision's ``Resize`` and ``CenterCrop`` do; None: the images must agree in size.
        channels: 3 converts every image to RGB, 1 to grey; None: the images must agree.
        passed_over: the number of skipped files and folders, by their kind.

    Raises:
        LtatError: a missing or foreign file, transparency, more than 8 bits per channel, images that differ in
            size or channels, a size above 4096, more than 89 million pixels in a file, or a label out of range.
    """
    store = open_image_files([path for path, _ in (*train, *test)], image_size, channels)

    def split(samples: Samples, first: int) -> Split:
        labels = np.array([label for _, label in samples], dtype=np.int64)
        places = np.arange(len(samples))
        return Split(store.subset(first + places), labels, len(class_names), places, tuple(class_names))

    return Dataset(name, split(train, 0), split(test, len(train)), tuple(class_names), passed_over or {})


def open_image_files(paths: Sequence[str], image_size: int | None, channels: int | None) -> ImageFiles:
    """The images in these files (at least one), after every header has been checked; see ``files_dataset``."""
    if image_size is not None and not 1 <= image_size <= _LARGEST:
        raise LtatError(f"image size {image_size} is outside 1..{_LARGEST}; give the height and width in pixels")
    if channels is not None and channels not in MODES:
        raise LtatError(f"{channels} channels are neither grey (1) nor RGB (3); give one of these")
    headers = read_headers(paths)
    if image_size is None:
        height, width = _common_size(paths, headers)
    else:
        _check_scaled(paths, headers, image_size)
        height = width = image_size
    channels = _common_channels(paths, headers) if channels is None else channels
    names = np.array([os.fsencode(path) for path in paths])
    return ImageFiles(names, (height, width, channels), fit=image_size is not None)


def read_headers(paths: Sequence[str]) -> list[Header]:
    """Size and mode of every file, without decoding.

    Raises:
        LtatError: naming the first file that is missing or foreign, has transparency or more than 8 bits.
    """
    together = [paths[start : start + _READ_TOGETHER] for start in range(0, len(paths), _READ_TOGETHER)]
    return [header for part in _in_threads(lambda part: list(map(_header, part)), together) for header in part]


@contextmanager
def opened(path: str) -> Iterator[ImageFile.ImageFile]:
    """An image file whose header is read; whatever fails inside becomes an ``LtatError`` with the path."""
    try:
        require_file(path)
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except LtatError:
        raise
    except Exception as error:  # a damaged file raises whatever its decoder stumbles over
        raise LtatError(f"{path} cannot be read as an image ({_reason(error)}); replace it or leave it out") from error


def _centre_square(image: Image.Image, size: int) -> Image.Image:
    from torchvision.transforms.v2 import functional  # noqa: PLC0415  (seconds of import time)

    square: Image.Image = functional.center_crop(functional.resize(image, [size]), [size, size])
    return square


def _header(path: str) -> Header:
    with opened(path) as image:
        if image.has_transparency_data:
            raise LtatError(f"{path} has transparency (mode {image.mode}), which no network sees; save it without")
        # Pillow cuts 16-bit colour to 8 bits silently; only the raw mode of its tiles shows it.
        if image.mode.startswith(_DEEP) or ";16" in str(image.tile):
            raise LtatError(f"{path} has more than 8 bits per channel (mode {image.mode}); save it with 8")
        if image.height * image.width > _MOST_PIXELS:
            raise LtatError(
                f"{path} is {image.height}x{image.width} and exceeds limit {_MOST_PIXELS} of pixels; shrink it"
            )
        return Header(image.height, image.width, image.mode)


def _common_size(paths: Sequence[str], headers: Sequence[Header]) -> tuple[int, int]:
    for path, header in zip(paths, headers, strict=True):
        if header[:2] != headers[0][:2]:
            raise LtatError(
                f"{paths[0]} is {_size(headers[0])} and {path} is {_size(header)}; "
                "bring all images to one size with --image-size N (data.image_size)"
            )
    if max(headers[0][:2]) > _LARGEST:
        raise LtatError(
            f"the images, such as {paths[0]}, are {_size(headers[0])}, more than {_LARGEST} pixels on a side; "
            "scale them down with --image-size N (data.image_size)"
        )
    return headers[0][:2]


def _check_scaled(paths: Sequence[str], headers: Sequence[Header], size: int) -> None:
    for path, (height, width, _) in zip(paths, headers, strict=True):
        if size * size * max(height, width) > _MOST_PIXELS * min(height, width):
            raise LtatError(
                f"{path} is {height}x{width}, too long and narrow to be scaled to {size}; crop it, or leave it out"
            )


def _common_channels(paths: Sequence[str], headers: Sequence[Header]) -> int:
    channels = _LOSSLESS.get(headers[0].mode)
    for path, header in zip(paths, headers, strict=True):
        if header.mode not in _LOSSLESS or _LOSSLESS[header.mode] != channels:
            beside = "" if path == paths[0] else f" and {paths[0]} of mode {headers[0].mode}"
            raise LtatError(
                f"{path} is of mode {header.mode}{beside} (L is grey, RGB colour); "
                "convert all images to RGB with --channels 3, or to grey with --channels 1 (data.channels)"
            )
    assert channels is not None  # the first file has passed
    return channels


def _in_threads(function: Callable[[Any], T], parts: Sequence[Any]) -> list[T]:
    # Pillow decodes without holding Python's lock, and a slow disk is asked for several files at once.
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, parts))


def _size(shape: Sequence[Any]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"it is none of {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).partition("\n")[0] or type(error).__name__
