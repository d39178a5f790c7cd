"""Datasets as FFCV's .beton files: written, checked as untrusted data, and read."""

from ltat.data.beton.dataset import load_beton
from ltat.data.beton.format import Beton, read_beton
from ltat.data.beton.images import BetonImages
from ltat.data.beton.writing import write_beton

__all__ = ["Beton", "BetonImages", "load_beton", "read_beton", "write_beton"]
