"""Random numbers by position instead of by history.

Every random draw of a run is keyed by ``(seed, stream, *counters)``, so that resuming needs only the counters
(epoch, step): no generator state is stored, and one consumer drawing more never shifts another's numbers.
"""

import zlib
from dataclasses import dataclass

import numpy as np
import torch

from ltat.ranks import Share


@dataclass(frozen=True)
class SharedGenerator:
    """A generator that draws for a whole batch, of which its user keeps the rows of ``share``.

    An image then gets the same noise on any number of ranks.
    """

    generator: torch.Generator
    share: Share


Noise = torch.Generator | SharedGenerator


def _entropy(seed: int, stream: str, counters: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, zlib.crc32(stream.encode()), *counters])


def numpy_generator(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """A NumPy generator that depends on nothing but ``(seed, stream, counters)``."""
    return np.random.default_rng(_entropy(seed, stream, counters))


def torch_generator(seed: int, stream: str, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on ``device`` that depends on nothing but ``(seed, stream, counters)``."""
    state = int(_entropy(seed, stream, counters).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(state >> 1)  # torch takes seeds below 2**63
