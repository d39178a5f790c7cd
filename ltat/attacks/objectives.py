"""What an attack ascends: a loss per image, of fp32 logits."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ltat.errors import LtatError

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits [B, C], labels [B], x_adv [B, ch, H, W]) → loss [B] to ascend.

``x_adv`` carries gradient, for objectives that send it through a second network (AdaAD: KL(T(x')‖S(x'))). The next step
overwrites it: keep a copy if you need one.

An objective that needs more than these three binds it by name: ``functools.partial(function, target=target)`` for a
fixed target such as TRADES' p(x), ``teacher=teacher`` for a frozen network. Unlike a closure it can then be captured as
a CUDA graph (:mod:`ltat.attacks.captured`).
"""


def cross_entropy(logits: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """−log softmax(z)_y."""
    return F.cross_entropy(logits, y, reduction="none")


def dlr(logits: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """Difference of logits ratio, −(z_y − max_{k≠y} z_k) / (z_(1) − z_(3)); Croce & Hein 2020.

    Invariant to scale and shift of the logits, hence blind to masking by large logits. Needs three classes.
    """
    if logits.shape[1] < 3:
        raise LtatError(f"the dlr objective needs at least 3 classes, got {logits.shape[1]}; use 'cw'")
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def cw(logits: Tensor, y: Tensor, x_adv: Tensor, confidence: float = 50.0) -> Tensor:
    """Carlini & Wagner's margin max_{k≠y} z_k − z_y, cut off at ``confidence`` (AT-BSL's CW∞ uses 50)."""
    return margin(logits, y).clamp(max=confidence)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{k≠y} z_k − z_y, [B], of logits or probabilities [B, C]: positive where y is not the largest."""
    own = logits.gather(1, y[:, None]).squeeze(1)
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - own


OBJECTIVES: dict[str, Objective] = {"ce": cross_entropy, "dlr": dlr, "cw": cw}
