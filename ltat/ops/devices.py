"""On which devices the native operators run: the library holds CUDA kernels for some architectures only."""

import functools
import warnings

import torch

from ltat import native
from ltat.errors import LtatError


def has_kernels(device: torch.device) -> bool:
    """Whether the library's kernels run on this GPU; where not, the first call says so in a warning.

    Args:
        device: of a tensor, and so with its index.

    Raises:
        LtatError: they do not, and ``LTAT_NATIVE=1`` requires them.
    """
    return _found(device)


# torch.compile takes the answer as a constant; it could not trace how it is found. assume_constant_result() does no
# more than this, but imports the whole compiler, which would double the time that a command takes to start.
has_kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _found(device: torch.device) -> bool:
    problem = native.problem_on(device)
    if problem is None:
        return True
    if native.required():
        raise LtatError(f"LTAT_NATIVE=1, but {problem}")
    warnings.warn(f"{problem}. Until then the slower PyTorch twins run there", stacklevel=4)
    return False
