"""Batch norm over the whole batch where several ranks share it.

Mean and variance are those of all ranks' images, so that the network maps an image as it would on one device:

    y = gamma (x - mean) / sqrt(var + eps) + beta,      mean, var over all ranks

On a GPU this is torch's ``SyncBatchNorm``, which has no CPU kernels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from ltat.errors import LtatError
from ltat.ranks import Ranks


def with_global_norms(model: nn.Module, ranks: Ranks) -> nn.Module:
    """``model`` with batch norms over the whole batch, in training mode; its parameters and buffers are the same.

    Raises:
        LtatError: it has a batch norm of another kind than ``BatchNorm2d``, on a CPU.
    """
    if ranks.size == 1:
        return model
    if any(parameter.is_cuda for parameter in model.parameters()):
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if type(norm) is nn.BatchNorm2d:
                setattr(parent, name, GlobalBatchNorm2d(norm, ranks))
            elif isinstance(norm, _BatchNorm) and not isinstance(norm, GlobalBatchNorm2d):
                raise LtatError(
                    f"{type(norm).__name__} {name!r} cannot see the whole batch of {ranks.size} ranks on a CPU; "
                    "use BatchNorm2d, or train.sync_bn=false"
                )
    return model


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """A batch norm whose batch statistics are those of all ranks' images.

    Args:
        norm: takes its place; parameters and buffers are shared with it.
        ranks: those that share the batch.
    """

    ranks: Ranks

    def __init__(self, norm: nn.BatchNorm2d, ranks: Ranks) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(norm.__dict__)
        self.__dict__["ranks"] = ranks

    def forward(self, x: Tensor) -> Tensor:
        """y [B, ch, H, W]."""
        if not self.training:
            return super().forward(x)
        mean, variance, count = global_statistics(x, self.ranks)
        if self.track_running_stats:
            self._track(mean, variance, count)
        y: Tensor = _Normalise.apply(x, mean, variance, count, self.weight, self.bias, self.eps, self.ranks)
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * (count / (count - 1))
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(unbiased, momentum)


NORMS = (nn.BatchNorm2d, GlobalBatchNorm2d, nn.SyncBatchNorm)
"""The batch norms that differ in training mode only."""


@torch.no_grad()
def global_statistics(x: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [ch] and variance [ch] of ``x`` [B, ch, H, W] over all ranks, in fp32 or wider, and the number of values.

    A message: every rank's own mean, variance and number. The variances are put together about the common mean (Chan,
    Golub, LeVeque 1979), so that a large mean costs no digits.
    """
    wide, channels = x.to(torch.promote_types(x.dtype, torch.float32)), x.shape[1]
    mean, variance = torch.batch_norm_update_stats(wide, None, None, 0.0)  # as one rank has them; nothing is updated
    own = torch.cat([mean, variance, wide.new_tensor([x.numel() / channels])])
    means, variances, counts = ranks.stacked(own).split([channels, channels, 1], dim=1)
    count = counts.sum()
    weights = counts / count
    mean = (weights * means).sum(0)
    return mean, (weights * (variances + (means - mean).square())).sum(0), count


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, with the gradient through mean and var of all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        ranks: Ranks,
    ) -> Tensor:
        ctx.save_for_backward(x, mean, variance, count, weight)
        ctx.eps, ctx.ranks, ctx.has_bias = eps, ranks, bias is not None
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, variance, count, weight = ctx.saved_tensors
        x, dy = x.to(mean.dtype), gradients[0].to(mean.dtype)
        # As if mean and variance were constants: dy times scale, and the sums of dy times the normalised x and of dy.
        dx, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, variance, None, None, False, ctx.eps, [True, True, True]
        )
        whole = torch.stack([d_weight, d_bias])
        ctx.ranks.sum_([whole])
        through_variance, through_mean = whole / count
        inverse = (variance + ctx.eps).rsqrt()
        scale = inverse if weight is None else inverse * weight
        slope = scale * inverse * through_variance
        dx.addcmul_(x, slope[:, None, None], value=-1).sub_((scale * through_mean - slope * mean)[:, None, None])
        d_weight = d_weight if weight is not None and ctx.needs_input_grad[4] else None
        d_bias = d_bias if ctx.has_bias and ctx.needs_input_grad[5] else None
        return dx.to(gradients[0].dtype), None, None, None, d_weight, d_bias, None, None
