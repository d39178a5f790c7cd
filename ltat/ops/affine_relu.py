"""Batch norm in evaluation mode with the ReLU behind it, as one pass."""

import torch
from torch import Tensor

from ltat import native
from ltat.ops.checks import plain, require_one_kind, require_per_channel, require_tensors
from ltat.ops.devices import has_kernels

# Loading registers the operators; it happens here because torch.compile could not trace it later.
_NATIVE_DEVICES = native.op_devices()


def affine_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``relu(x * scale + shift)`` with one scale and one shift per channel.

    Product and sum are computed and rounded in float32, and the result is rounded once more to the dtype of ``x``.
    NaN stays NaN. ``relu_grad_add(output, grad, scale=scale)`` gives the gradient.

    Args:
        x: float32, bfloat16 or float16 [B, ch, ...], any strides.
        scale: float32 [ch]; of a batch norm ``weight / sqrt(running_var + eps)``.
        shift: float32 [ch]; of a batch norm ``bias - running_mean * scale``.

    Returns:
        Same shape, dtype and memory order as ``x``. Carries no gradient.

    Raises:
        LtatError: shapes, dtypes or devices that do not fit.
    """
    try:
        if x.device.type in _NATIVE_DEVICES and (x.is_cpu or has_kernels(x.device)):
            return torch.ops.ltat.affine_relu.default(plain(x), plain(scale), plain(shift))
    except Exception:
        # The operator checks all tensors before it writes; this names the one that it refused.
        _check(x, scale, shift)
        raise
    _check(x, scale, shift)
    with torch.no_grad():
        return torch.empty_like(x).copy_(affine_relu_twin(x, scale, shift))


def affine_relu_twin(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The specification of ``affine_relu`` in plain PyTorch, without its checks; same arguments, same result."""
    along = (-1, *[1] * (x.ndim - 2))
    return (x.float() * scale.view(along) + shift.view(along)).relu().to(x.dtype)


def _check(x: Tensor, scale: Tensor, shift: Tensor) -> None:
    require_tensors(x=x)
    require_one_kind("x", x)
    require_per_channel("x", x, scale=scale, shift=shift)


if _NATIVE_DEVICES:

    @torch.library.register_fake("ltat::affine_relu")
    def _affine_relu_fake(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        _check(x, scale, shift)
        return torch.empty_like(x)
