"""A trial of a working copy against its network, before the copy is trusted.

A trace sees one forward, and not what Python does beside it. The copy of a network that ltat does not know must have
the logits and the input gradients of the network on two random images, in the network's dtype; the copy in half
precision must run on them.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ltat.engine.tracing import Untraceable
from ltat.engine.working_copy import WorkingCopy
from ltat.models import Classifier

LOGITS, GRADIENTS = 1e-3, 0.05
"""Largest differences over the norm; in single precision an activation near zero may fall on the other side."""


def is_known(model: nn.Module) -> bool:
    """Whether the model is a classifier whose parts are all of ltat or of torch."""
    modules = {type(module).__module__.partition(".nn.")[0] for module in model.modules()}
    return isinstance(model, Classifier) and all(name == "torch" or name.startswith("ltat.") for name in modules)


def tried_copy(
    model: nn.Module, images: Tensor, dtype: torch.dtype | None = None, compiled: bool = False
) -> WorkingCopy:
    """The working copy of a model, after its trial if ltat does not know the model.

    Args:
        model: see :class:`WorkingCopy`, as ``dtype`` and ``compiled``.
        images: [n, ch, H, W], of which the shape is used.

    Raises:
        Untraceable: there is no copy, it is not like its network, or one of them fails on such images.
    """
    with torch.inference_mode(False):  # a copy made in inference mode could not be refreshed outside of it
        work = WorkingCopy(model, dtype, compiled)
        if not is_known(model):
            work.num_classes = _try(work, images)
    return work


def _try(work: WorkingCopy, images: Tensor) -> int:
    """The number of logits."""
    name = type(work.model).__name__
    network = copy.deepcopy(work.model).eval().requires_grad_(False)
    noise = torch.rand(2, *images.shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = noise.to(work.place.device, work.place.dtype)
    cudnn = torch.backends.cudnn
    flags = {"enabled": cudnn.enabled, "benchmark": False, "deterministic": cudnn.deterministic, "allow_tf32": False}
    try:
        with torch.autocast(x.device.type, enabled=False), torch.enable_grad(), cudnn.flags(**flags):
            found, expected = (_logits_and_gradients(each, x) for each in (WorkingCopy(network), network))
            work(x)
    except Exception as error:  # whatever a foreign network raises
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise Untraceable(f"the copy of {name} fails on images {tuple(images.shape[1:])}: {reason}") from error
    for what, mine, its, limit in zip(("logits", "gradients"), found, expected, (LOGITS, GRADIENTS), strict=True):
        if not _near(mine, its, limit):
            raise Untraceable(f"the copy of {name} has other {what} than the network on two random images")
    return expected[0].shape[1]


def _logits_and_gradients(network: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    logits = network(leaf)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise TypeError("it returns no logits [B, C]")
    weights = torch.arange(logits.numel(), device=x.device, dtype=logits.dtype).cos().view_as(logits)
    return logits.detach(), torch.autograd.grad((logits * weights).sum(), leaf)[0]


def _near(found: Tensor, expected: Tensor, limit: float) -> bool:
    return found.shape == expected.shape and bool((found - expected).norm() <= limit * expected.norm())
