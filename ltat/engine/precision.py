"""Mixed precision of the network body.

Only the network's body runs in half precision. Images, perturbations, logits, losses and master weights stay fp32:
the spacing of bf16 in [0.5, 1) is 2**-8, so a start noise of 0.001 would vanish in a bf16 image and a step of
2/255 would carry up to 25 % rounding error.
"""

import torch

from ltat.errors import LtatError

PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(precision: str) -> torch.dtype:
    """The dtype in which the network body computes; ``LtatError`` for an unknown name."""
    if precision not in PRECISIONS:
        raise LtatError(f"unknown precision {precision!r}; use one of {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def autocast(device_type: str, precision: str) -> torch.autocast:
    """The autocast context of ``precision`` on ``"cpu"`` or ``"cuda"``; ``"fp32"`` turns autocast off inside.

    Raises:
        LtatError: unknown precision.
    """
    dtype = dtype_of(precision)
    if dtype == torch.float32:
        return torch.autocast(device_type, enabled=False)
    return torch.autocast(device_type, dtype=dtype)
