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


def has_instructions_for(precision: str) -> bool:
    """Whether this processor computes in ``precision``; where not, oneDNN emulates it, many times slower than fp32."""
    asks = {"bf16": "_is_mkldnn_bf16_supported", "fp16": "_is_mkldnn_fp16_supported"}
    ask = getattr(torch.ops.mkldnn, asks[precision], None) if precision in asks else None
    return ask is None or bool(ask())


def emulated(device: torch.device, precision: str) -> list[str]:
    """A line for the user where ``precision`` is emulated on ``device``, else none."""
    if device.type != "cpu" or has_instructions_for(precision):
        return []
    return [f"warning: this processor has no {precision} instructions, so it runs many times slower than fp32"]
