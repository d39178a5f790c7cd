"""The fused operations of a working copy compute what the separate ones do, forward and backward."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ltat.engine import fused
from ltat.engine.fused import Geometry, fused_convolution, library, separately
from ltat.engine.fusion import fuse
from ltat.engine.working_copy import WorkingCopy
from ltat.models import build_model

GEOMETRIES = (
    Geometry((1, 1), (1, 1), (1, 1), 1),
    Geometry((2, 2), (1, 1), (1, 1), 1),
    Geometry((1, 1), (0, 0), (1, 1), 1),
    Geometry((1, 1), (1, 1), (1, 1), 8),
    Geometry((2, 1), (2, 3), (2, 1), 2),
)


def tensors(geometry: Geometry, dtype: torch.dtype, layout: torch.memory_format) -> tuple[Tensor, ...]:
    """Images, residual, weight and bias."""
    x = torch.randn(3, 8, 9, 8, dtype=dtype).to(memory_format=layout)
    weight = (torch.randn(16, 8 // geometry.groups, 3, 3, dtype=dtype) / 8).to(memory_format=layout)
    residual = torch.randn(geometry.output_size(x, weight), dtype=dtype).to(memory_format=layout)
    return x, residual, weight, torch.randn(16, dtype=dtype)


def run(forward, x: Tensor, residual: Tensor | None) -> list[Tensor]:
    """The output, and its gradients after two readers have used it."""
    leaves = [tensor.clone().requires_grad_() for tensor in (x, residual) if tensor is not None]
    first, second = forward(leaves[0], leaves[1] if residual is not None else None)
    total = (first * first.detach().sin()).sum() + (second * second.detach().cos()).sum()
    return [first.detach(), *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_output_and_gradients_are_those_of_the_separate_operations(geometry, relu, summed, dtype):
    torch.manual_seed(0)
    x, residual, weight, bias = tensors(geometry, dtype, torch.channels_last)
    residual = residual if summed else None

    def expected(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        y = F.conv2d(x, weight, bias, *geometry)
        y = y if residual is None else y + residual
        return (F.relu(y) if relu else y,) * 2

    mine = run(lambda x, r: fused_convolution(x, r, weight, bias, geometry, relu, 2), x, residual)
    exact = run(expected, x, residual)
    close = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}[dtype]
    for one, other in zip(mine, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=close, atol=close)
        assert one.shape == other.shape and one.dtype == other.dtype
