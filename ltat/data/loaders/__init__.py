"""Batches of a split by an index plan, from wherever its images lie."""

from ltat.data.loaders.base import Batch, Loader
from ltat.data.loaders.resident import ResidentLoader

__all__ = ["Batch", "Loader", "ResidentLoader"]
