"""Fixtures of the training tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ltat.training import train
from tests.training.tiny import tiny_config


@pytest.fixture
def run_tiny(tmp_path: Path) -> Callable[..., Path]:
    """Train a tiny run into ``tmp_path/<name>`` and return its folder."""

    def run(name: str, *assignments: str, resume: bool = False) -> Path:
        train(tiny_config(*assignments), tmp_path / name, resume=resume)
        return tmp_path / name

    return run
