"""Batches that the tests of several methods share."""

import pytest

from ltat.data import Batch
from tests.methods.making import random_batch


@pytest.fixture
def batch() -> Batch:
    return random_batch(6, 1, 8, 8, classes=4)


@pytest.fixture
def small() -> Batch:
    return random_batch(7, 3, 2, 2, classes=5)
