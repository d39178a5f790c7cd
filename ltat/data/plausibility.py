"""Checks that refuse implausible arrays of the right type, each with its remedy."""

import numpy as np

from ltat.errors import LtatError

_CHECKED_FIRST = 64  # images, from all over the set
_CHANNELS = (1, 3, 4)
_RANGES = (
    (0, 1, "pixels in [0, 1]; store (images * 255).round().astype(np.uint8)"),
    (-1, 1, "pixels in [-1, 1]; store ((images + 1) * 127.5).round().astype(np.uint8)"),
    (0, 255, "pixels in 0..255; store images.round().astype(np.uint8)"),
    (0, 65535, "pixels of 16 bits; store (images // 257).astype(np.uint8)"),
)
_STANDARDISED = "standardised pixels; store ((images * std + mean) * 255).round().astype(np.uint8)"


def check_layout(shape: tuple[int, ...]) -> None:
    """Refuse images whose last axis cannot be that of the channels.

    Raises:
        LtatError: with the likely layout of that shape.
    """
    if shape[3] in _CHANNELS:
        return
    if shape[1] in _CHANNELS and min(shape[2:]) > 4:
        remedy = "[N, ch, H, W]; store images.transpose(0, 2, 3, 1)"
    elif shape[2] in _CHANNELS and min(shape[0], shape[1]) > 4:
        remedy = "[H, W, ch, N]; store images.transpose(3, 0, 1, 2)"
    elif shape[3] == 2:
        remedy = "grey with transparency; store images[..., :1]"
    else:
        remedy = f"images of {shape[3]} channels; store grey (1), RGB (3) or RGBA (4) images as [N, H, W, ch]"
    raise LtatError(f"images have shape {shape}, which looks like {remedy}")


def wrong_kind(images: np.ndarray) -> str:
    """The end of an error on images that are not uint8: what they look like, and NumPy's line that converts them."""
    if images.dtype == np.bool_:
        return "; store images.astype(np.uint8) * 255"
    if not np.issubdtype(images.dtype, np.number) or not images.size or np.iscomplexobj(images):
        return "; store them as uint8, 0..255"
    low, high = images.min(), images.max()
    if not np.isfinite([low, high]).all():
        return "; store them as uint8, 0..255, without NaN and infinite values"
    what = next((words for least, most, words in _RANGES if low >= least and high <= most), _STANDARDISED)
    return f", from {low:.4g} to {high:.4g}, which looks like {what}"


def check_pixels(images: np.ndarray, part: str) -> None:
    """Refuse uint8 images [N, H, W, ch] that are all one value, or none above 1.

    Raises:
        LtatError: with the likely scaling of the values.
    """
    for some in (images[:: max(1, len(images) // _CHECKED_FIRST)], images):  # nearly every set is settled by a few
        low, high = int(some.min()), int(some.max())
        if high > 1 and low < high:
            return
    if low == high:
        raise LtatError(f"every pixel of the {part} images is {low}, so there is nothing to learn; write them again")
    raise LtatError(
        f"the {part} images hold 0 and 1 only, which looks like pixels in [0, 1] cut to integers; "
        "store (images * 255).round().astype(np.uint8) of the original"
    )


def check_apart(train: np.ndarray, test: np.ndarray) -> None:
    """Refuse a test set that is the training set.

    Raises:
        LtatError: they are the same images in the same order.
    """
    if train.shape == test.shape and train is not test and np.array_equal(train, test):
        raise LtatError("the test images are the training images, so accuracies would mean nothing; give others")


def label_hint(labels: np.ndarray, images: int) -> str:
    """The end of an error on labels that are not integers [N]: the line of NumPy that converts them, if one does."""
    if labels.ndim == 2 and labels.shape == (images, 1):
        return "; store labels[:, 0]"
    if labels.ndim == 2 and labels.shape[0] == images:
        return ", which looks one-hot; store labels.argmax(axis=1)"
    if labels.shape == (images,) and np.issubdtype(labels.dtype, np.floating):
        return "; store labels.astype(np.int64)"
    return f"; store integers of shape ({images},)"
