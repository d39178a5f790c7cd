"""The mean and standard deviation of each channel, with which a network normalises its images."""

import numpy as np

from ltat.config import RunConfig
from ltat.data import Split
from ltat.errors import LtatError
from ltat.models import read_card
from ltat.models.base import Normalization


def normalization(config: RunConfig, train: Split) -> Normalization | None:
    """The mean and standard deviation inside the network: those of the saved model if the run starts from one.

    A saved model's weights fit only its own statistics; those of another subset would change the network.
    """
    if config.model.normalize == "none":
        return None
    if config.model.weights is not None:
        return read_card(config.model.weights).normalize
    return pixel_statistics(train)


def pixel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation of each channel over a split, for pixels in [0, 1]."""
    values, histogram = np.arange(256), channel_histogram(split)
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ values
    deviation = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1)) / 255
    mean = mean / 255
    if (deviation == 0).any():
        raise LtatError("model.normalize=train needs images that vary and a channel is constant; use none")
    return tuple(mean.tolist()), tuple(deviation.tolist())


def channel_histogram(split: Split) -> np.ndarray:
    """The number of pixels of each value in each channel, int64 [ch, 256]."""
    channels = split.images.shape[-1]
    histogram = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(split), 1024):  # in parts: a set that is read on demand may not fit into memory
        pixels = split.images[start : start + 1024].reshape(-1, channels)
        histogram += np.stack([np.bincount(channel, minlength=256) for channel in pixels.T])
    return histogram
