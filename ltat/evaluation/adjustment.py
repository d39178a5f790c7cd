"""Post-hoc logit adjustment (Menon et al., ICLR 2021), inside the network that is evaluated and attacked:

    z_c - tau * log pi_c,    pi_c = n_c / N

with z the network's logits and n_c the number of training images of class c. It removes the long-tailed prior from a
network that was trained on it. A network whose loss (balanced softmax) or sampling corrects for the prior would be
corrected twice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ltat.errors import LtatError
from ltat.models import Classifier, CosineClassifier

CORRECTED_TWICE = (
    "the logits are adjusted by the training prior, and training has corrected for it too, by its loss or its "
    "sampling: it is corrected twice"
)
"""The flag of an adjusted evaluation of a checkpoint whose training corrected for the prior."""


@dataclass(frozen=True)
class Adjustment:
    """The offset of a logit adjustment.

    Attributes:
        tau: strength, at least 0; 1 removes the whole prior.
        train_counts: number of training images of each class, [C], each at least 1.

    Raises:
        LtatError: a value out of range.
    """

    tau: float
    train_counts: Sequence[int]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tau) and self.tau >= 0):
            raise LtatError(f"the adjustment's tau is {self.tau:g}; give a number of at least 0")
        empty = [c for c, n in enumerate(self.train_counts) if n < 1]
        if empty:
            raise LtatError(
                f"class {empty[0]} has no training image and log 0 adjusts nothing; leave the adjustment out"
            )

    def offset(self) -> Tensor:
        """- tau * log pi_c, fp32 [C]."""
        counts = torch.tensor(list(self.train_counts), dtype=torch.float64)
        return (-self.tau * (counts / counts.sum()).log()).float()

    def to_json(self) -> dict[str, Any]:
        """The entry of the report."""
        return {"tau": float(self.tau), "train_counts": [int(n) for n in self.train_counts]}


def adjusted(model: nn.Module, adjustment: Adjustment) -> nn.Module:
    """A network that shares its parts with ``model`` and adjusts the logits.

    Of a classifier of ltat only the last layer is another one, so that the engine runs it as it runs ``model``.

    Raises:
        LtatError: the model already adjusts its logits, as RoBal's does with tau_p.
    """
    head = getattr(model, "classifier", None)
    if isinstance(head, CosineClassifier) and head.offset.any():
        raise LtatError("the network adjusts its logits itself (robal.tau_p); leave the other adjustment out")
    offset = adjustment.offset()
    offset = offset.to(next(model.parameters(), offset).device)
    if isinstance(model, Classifier) and type(model).forward is Classifier.forward:
        return model.with_classifier(LogitAdjusted(model.classifier, offset))
    return LogitAdjusted(model, offset)


class LogitAdjusted(nn.Module):
    """What gives logits [B, C], a network or its last layer, with ``offset`` [C], fp32, added to them."""

    def __init__(self, network: nn.Module, offset: Tensor) -> None:
        super().__init__()
        self.network = network
        self.offset: Tensor
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        """Adjusted logits [B, C], not in half precision."""
        logits: Tensor = self.network(x)
        return logits + self.offset.expand_as(logits)  # expanded, because one logit must not become C
