"""What every test may rely on."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def as_many_threads_afterwards() -> Iterator[None]:
    """The bits of a training depend on the number of threads, and a bench that a test runs sets it."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:  # setting it is not free
        torch.set_num_threads(before)
