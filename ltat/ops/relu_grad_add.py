"""The backward pass of a ReLU, with the sum of its readers' gradients before it and a scale and a sum behind it."""

import torch
from torch import Tensor

from ltat import native
from ltat.ops.checks import plain, require_one_kind, require_per_channel, require_tensors
from ltat.ops.devices import has_kernels

# Loading registers the operators; it happens here because torch.compile could not trace it later.
_NATIVE_DEVICES = native.op_devices()


def relu_grad_add(
    output: Tensor,
    grad: Tensor,
    other: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    outside: Tensor | None = None,
) -> Tensor:
    """The gradient at the input of a ReLU: ``where(output <= 0, 0, grad + other) * scale + outside``.

    ``grad`` and ``other`` are the gradients of the two that read the ReLU's output, ``scale`` is that of the affine map
    of channels before it (batch norm in evaluation mode), and ``outside`` the gradient that reaches the same tensor on
    another way. All is computed in float32 and rounded once, so ``relu_grad_add(output, grad, other)`` has the bits of
    autograd, which rounds the sum and then masks it. A NaN in the output passes the gradient, as it does there.

    Args:
        output: float32, bfloat16 or float16 [B, ch, ...], what the ReLU gave; any strides.
        grad: same shape and dtype, gradient of one reader.
        other: same shape and dtype, gradient of another reader; none if None.
        scale: float32 [ch], one factor per channel; 1 if None.
        outside: same shape and dtype, added behind the mask; none if None.

    Returns:
        Same shape, dtype and memory order as ``output``. Carries no gradient. What lies in that order is read in place,
        and the rest copied to it first.

    Raises:
        LtatError: shapes, dtypes or devices that do not fit.
    """
    try:
        if output.device.type in _NATIVE_DEVICES and (output.is_cpu or has_kernels(output.device)):
            tensors = (output, grad, other, scale, outside)
            return torch.ops.ltat.relu_grad_add.default(*(None if each is None else plain(each) for each in tensors))
    except Exception:
        # The operator checks all tensors before it writes; this names the one that it refused.
        _check(output, grad, other, scale, outside)
        raise
    _check(output, grad, other, scale, outside)
    with torch.no_grad():
        return torch.empty_like(output).copy_(relu_grad_add_twin(output, grad, other, scale=scale, outside=outside))


def relu_grad_add_twin(
    output: Tensor,
    grad: Tensor,
    other: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    outside: Tensor | None = None,
) -> Tensor:
    """The specification of ``relu_grad_add`` in plain PyTorch, without its checks; same arguments, same result."""
    total = grad.float() if other is None else grad.float() + other.float()
    passed = torch.where(output <= 0, 0.0, total)
    scaled = passed if scale is None else passed * scale.view(-1, *[1] * (output.ndim - 2))
    return (scaled if outside is None else scaled + outside.float()).to(output.dtype)


def _check(output: Tensor, grad: Tensor, other: Tensor | None, scale: Tensor | None, outside: Tensor | None) -> None:
    optional = {"other": other, "outside": outside}
    tensors = {"grad": grad} | {name: tensor for name, tensor in optional.items() if tensor is not None}
    require_tensors(output=output, **tensors)
    require_one_kind("output", output, **tensors)
    if scale is not None:
        require_per_channel("output", output, scale=scale)


if _NATIVE_DEVICES:

    @torch.library.register_fake("ltat::relu_grad_add")
    def _relu_grad_add_fake(
        output: Tensor, grad: Tensor, other: Tensor | None, scale: Tensor | None, outside: Tensor | None
    ) -> Tensor:
        _check(output, grad, other, scale, outside)
        return torch.empty_like(output)
