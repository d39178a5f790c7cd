"""Batches of a split by an index plan, from wherever its images lie."""

from ltat.data.loaders.base import Batch, Loader, Shared
from ltat.data.loaders.choice import LOADERS, choose_loader, make_loader
from ltat.data.loaders.dataloader import TorchLoader
from ltat.data.loaders.ffcv import FfcvLoader
from ltat.data.loaders.resident import ResidentLoader

__all__ = [
    "LOADERS",
    "Batch",
    "FfcvLoader",
    "Loader",
    "ResidentLoader",
    "Shared",
    "TorchLoader",
    "choose_loader",
    "make_loader",
]
