"""The operations of a working copy, each one pass over its tensors forward and one backward.

    fused_convolution    y = relu(conv(x; W, b) + r)      d = [y > 0] (g₁ + g₂),   ∂r = d,   ∂x = convᵀ(d; W)
    fused_norm           y = relu(s x + t)                ∂x = [y > 0] (g₁ + g₂) s + g₃

g₁ and g₂ are the gradients of the two operations that read y, the next convolution and the next shortcut; g₃ is the
gradient of a shortcut that reads x itself. Residual sum and ReLU of a convolution may be missing. Weights, biases and
the s and t of a batch norm in evaluation mode get no gradient. Where cuDNN or oneDNN has the forward of a convolution
as one kernel that keeps a NaN, it computes it; the other passes are :func:`ltat.ops.relu_grad_add` and
:func:`ltat.ops.affine_relu`.
"""

from collections.abc import Callable, Sequence
from functools import cache, reduce
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ltat.ops import affine_relu, relu_grad_add

_SLOPE = 1e-30  # of a leaky ReLU that serves as a ReLU: lost beside any weight and bias, and no denormal number


class Geometry(NamedTuple):
    """Stride, padding, dilation and groups of a convolution."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def output_size(self, x: Tensor, weight: Tensor) -> tuple[int, ...]:
        """The shape of ``conv(x; weight)``."""
        sizes = zip(x.shape[2:], self.stride, self.padding, self.dilation, weight.shape[2:], strict=True)
        spatial = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, s, p, d, k in sizes)
        return (x.shape[0], weight.shape[0], *spatial)


Convolve = Callable[[Tensor, Tensor | None, Tensor, Tensor | None, Geometry, bool], Tensor]
"""(x, residual, weight, bias, geometry, relu) → y."""


def fused_convolution(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    relu: bool,
    readers: int,
) -> tuple[Tensor, ...]:
    """The output [B, out, H', W'] once for each of its ``readers``, differentiable once, in ``x`` and ``residual``.

    Args:
        x: [B, in, H, W].
        residual: added to the convolution; like the output, or what ``+`` makes fit.
        weight: [out, in / groups, k, k], without gradient.
        bias: [out], without gradient.
        geometry: of the convolution.
        relu: whether ReLU follows.
        readers: how many operations read the output. Each reads a separate tensor on the same memory, so that the
            backward gets their gradients one by one and sums them as it masks them.
    """
    if x.dim() != 4 or (residual is not None and not _is_like_output(residual, x, weight, geometry)):
        return (separately(x, residual, weight, bias, geometry, relu),) * readers
    outputs: tuple[Tensor, ...] = _FusedConvolution.apply(x, residual, weight, bias, geometry, relu, readers)
    return outputs


def _is_like_output(residual: object, x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    # Of what a network adds the trace does not know the kind: a number that is computed from a shape, say.
    if not isinstance(residual, Tensor) or residual.dtype != x.dtype:
        return False
    return residual.shape == geometry.output_size(x, weight)


class _FusedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        relu: bool,
        readers: int,
    ) -> tuple[Tensor, ...]:
        y = _convolve_for(x)(x, residual, weight, bias, geometry, relu)
        ctx.geometry, ctx.relu = geometry, relu
        ctx.save_for_backward(x, weight, *([y] if relu else []))
        ctx.set_materialize_grads(False)
        return (y, *(y.detach() for _ in range(readers - 1)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, *output = ctx.saved_tensors
        grad = _masked(output[0], gradients) if ctx.relu else _sum(gradients)
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        needs_x, needs_residual, *rest = ctx.needs_input_grad
        grad_x = _transposed(grad, x, weight, ctx.geometry) if needs_x else None
        return grad_x, grad if needs_residual else None, *(None for _ in rest)


def fused_norm(x: Tensor, scale: Tensor, shift: Tensor, readers: int, passed: int) -> tuple[Tensor, ...]:
    """ReLU of an affine map of the channels, once for each of its ``readers``, then ``x`` itself ``passed`` times.

    Args:
        x: [B, ch, H, W], in no more than single precision.
        scale: [ch] fp32, without gradient.
        shift: [ch] fp32, without gradient.
        readers: see :func:`fused_convolution`.
        passed: how many other operations read ``x``. They read it behind this one, so that the backward adds their
            gradients as it forms its own.
    """
    outputs: tuple[Tensor, ...] = _FusedNorm.apply(x, scale, shift, readers, passed)
    return outputs


class _FusedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, readers: int, passed: int) -> tuple[Tensor, ...]:
        y = affine_relu(x, scale, shift)
        ctx.readers = readers
        ctx.save_for_backward(y, scale)
        ctx.set_materialize_grads(False)
        return (y, *(y.detach() for _ in range(readers - 1)), *(x.detach() for _ in range(passed)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        y, scale = ctx.saved_tensors
        outside = _sum(gradients[ctx.readers :])
        grad = _masked(y, gradients[: ctx.readers], scale=scale, outside=outside)
        return outside if grad is None else grad, None, None, None, None


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    there = [gradient for gradient in gradients if gradient is not None]
    return reduce(torch.add, there) if there else None


def _masked(output: Tensor, gradients: Sequence[Tensor | None], **behind: Tensor | None) -> Tensor | None:
    """The sum of the gradients where the output is above zero, by ``relu_grad_add``."""
    there = [gradient for gradient in gradients if gradient is not None]
    if not there:
        return None
    if output.dtype == torch.float64:  # which the kernels do not have
        masked: Tensor = torch.ops.aten.threshold_backward(_sum(there), output, 0)
        return masked
    return relu_grad_add(output, there[0], _sum(there[1:]), **behind)


def _transposed(grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The gradient at the input of the convolution."""
    arguments = (None, geometry.stride, geometry.padding, geometry.dilation, False, (0, 0), geometry.groups)
    grad_x: Tensor = torch.ops.aten.convolution_backward(grad, x, weight, *arguments, (True, False, False))[0]
    return grad_x


def _convolve_for(x: Tensor) -> Convolve:
    deterministic = torch.are_deterministic_algorithms_enabled() or torch.backends.cudnn.deterministic
    if x.numel() == 0 or (x.is_cuda and deterministic):  # cuDNN's fused kernels may not be deterministic
        return separately
    return library(x.device.type, x.dtype)


@cache
def library(device_type: str, dtype: torch.dtype) -> Convolve:
    """What computes the forward as one kernel on this kind of device, or the separate operations."""
    fused = {"cpu": _onednn, "cuda": _cudnn}.get(device_type)
    return fused if fused is not None and _works(fused, device_type, dtype) else separately


def _works(fused: Convolve, device_type: str, dtype: torch.dtype) -> bool:
    """Whether the library has the operation for this dtype, and keeps a NaN; builds and processors differ.

    A ReLU that makes zeros of NaN gives a diverged network finite logits, and its images would count as classified.
    """
    x = torch.ones((1, 8, 4, 4), dtype=dtype, device=device_type).to(memory_format=torch.channels_last)
    weight = torch.ones((8, 8, 3, 3), dtype=dtype, device=device_type).to(memory_format=torch.channels_last)
    weight[0], x[0, 0, 0, 0] = -1, torch.nan
    bias, geometry = torch.ones(8, dtype=dtype, device=device_type), Geometry((1, 1), (1, 1), (1, 1), 1)
    try:
        return all(
            torch.allclose(convolved, separately(x, residual, weight, bias, geometry, True), equal_nan=True)
            for residual in (None, x)
            for convolved in [fused(x, residual, weight, bias, geometry, True)]
        )
    except (RuntimeError, AttributeError):
        return False


def separately(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, geometry: Geometry, relu: bool
) -> Tensor:
    """The forward as up to three operations; the specification of the others."""
    y = F.conv2d(x, weight, bias, *geometry)
    if residual is not None:
        y = y + residual
    return y.relu() if relu else y


def _onednn(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, geometry: Geometry, relu: bool
) -> Tensor:
    stride, padding, dilation, groups = geometry
    where = (weight, bias, padding, stride, dilation, groups)
    y: Tensor
    if residual is None:
        # oneDNN's ReLU makes zeros of NaN; its leaky one with a slope that rounds away keeps them.
        activation = ("leaky_relu", [_SLOPE], "") if relu else ("none", [], "")
        y = torch.ops.mkldnn._convolution_pointwise(x, *where, *activation)
        return y
    y = torch.ops.mkldnn._convolution_pointwise.binary(x, residual, *where, "add", 1.0, None, [], None)
    return y.relu_() if relu else y  # behind a sum it has no leaky one


def _cudnn(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None, geometry: Geometry, relu: bool
) -> Tensor:
    if not relu:
        return separately(x, residual, weight, bias, geometry, relu)
    if residual is None:
        return torch.cudnn_convolution_relu(x, weight, bias, *geometry)
    return torch.cudnn_convolution_add_relu(x, weight, residual, 1.0, bias, *geometry)
