"""Marks for tests that need something optional."""

import os
from importlib.util import find_spec

import pytest
import torch

needs_ffcv = pytest.mark.skipif(
    find_spec("ffcv") is None and os.environ.get("LTAT_FFCV") != "1", reason="needs FFCV: python -m ltat.install_ffcv"
)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
