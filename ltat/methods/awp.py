"""AWP (Wu, Xia, Wang; NeurIPS 2020; arXiv 2004.05884): train at the worst weights nearby.

With the loss L of any method, for every weight tensor w of more than one dimension,

    v = gamma * |w| / (|g| + 1e-20) * g,    g = grad_w L(w),        |.| the norm over the whole tensor
    w <- w - lr * grad_w L(w + v)

The reference code finds g by a step of plain SGD on a copy of the network. The learning rate of that step cancels, so
no copy is needed: g is the gradient at w, and the buffers that its forwards change are restored. The reference code
takes the optimiser's step, weight decay included, at w + v and then subtracts v; here w is restored bit for bit before
the step.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ltat.config import RunConfig
from ltat.errors import LtatError
from ltat.methods.step import LossTerms, Step
from ltat.ranks import ALONE, Ranks

GUARD = 1e-20  # avoids 0 / 0 for a tensor without gradient


def check_awp(config: RunConfig) -> None:
    """Check the settings of AWP.

    Raises:
        LtatError: fp16, whose unscaled gradients underflow, or a warm-up as long as the run.
    """
    awp, train = config.awp, config.train
    if not awp.gamma:
        return
    if train.precision == "fp16":
        raise LtatError(f"awp.gamma={awp.gamma:g} needs gradients that fp16 rounds to zero; use --precision bf16")
    if awp.warmup >= train.epochs:
        raise LtatError(f"awp.warmup={awp.warmup} leaves none of the {train.epochs} epochs to AWP; lower it")


def perturbed_weights(step: Step, config: RunConfig, loss: Callable[[Step], LossTerms]) -> AbstractContextManager[None]:
    """A context in which the network has the weights w + v, after ``awp.warmup`` and with ``awp.gamma`` above 0.

    Args:
        step: a step that has its adversarial images.
        config: of the run.
        loss: the method's loss.
    """
    awp = config.awp
    if not awp.gamma or step.epoch <= awp.warmup:
        return nullcontext()
    shared = step.batch.shared
    ranks = ALONE if shared is None else shared.ranks
    return adversarial_weights(step.model, lambda: loss(step).loss, awp.gamma, ranks)


@contextmanager
def adversarial_weights(
    model: nn.Module, loss: Callable[[], Tensor], gamma: float, ranks: Ranks = ALONE
) -> Iterator[None]:
    """Inside, the weights of ``model`` are w + v; on leaving, also by an exception, they are w again, bit for bit.

    Args:
        model: the network, in training mode; its ``.grad`` and buffers do not change.
        loss: computes L at the current weights, 0-dim.
        gamma: the size of v relative to w, tensor by tensor.
        ranks: those that share the batch of L.

    Raises:
        LtatError: the network has no weight to perturb.
    """
    weights = perturbed_parameters(model)
    directions = ascent_directions(model, loss, weights, ranks)
    kept = [w.detach().clone() for w in weights]
    try:
        with torch.no_grad():
            for w, direction in zip(weights, directions, strict=True):
                w.add_(direction, alpha=gamma)
        yield
    finally:
        with torch.no_grad():
            for w, value in zip(weights, kept, strict=True):
                w.copy_(value)


def perturbed_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trained parameters of more than one dimension with "weight" in their name, as in the reference code.

    Raises:
        LtatError: the model has no such parameter.
    """
    named = model.named_parameters()
    weights = [p for name, p in named if p.requires_grad and p.ndim > 1 and "weight" in name]
    if not weights:
        raise LtatError(
            'AWP finds no trained parameter of more than one dimension with "weight" in its name; set awp.gamma=0'
        )
    return weights


def ascent_directions(
    model: nn.Module, loss: Callable[[], Tensor], weights: list[nn.Parameter], ranks: Ranks = ALONE
) -> list[Tensor]:
    """|w| / (|g| + 1e-20) * g for each weight, of its shape; 0 where g is not finite or the loss does not use it."""
    with buffers_put_back(model):
        gradients = torch.autograd.grad(loss(), weights, allow_unused=True, materialize_grads=True)
        ranks.mean_(gradients)
    return [_as_long_as(w.detach(), g) for w, g in zip(weights, gradients, strict=True)]


def _as_long_as(w: Tensor, g: Tensor) -> Tensor:
    length = g.norm()
    return torch.where(length.isfinite(), g * (w.norm() / (length + GUARD)), 0.0)


@contextmanager
def buffers_put_back(model: nn.Module) -> Iterator[None]:
    """On leaving, the buffers of ``model`` (batch-norm statistics) have the values from before."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(kept[name])
