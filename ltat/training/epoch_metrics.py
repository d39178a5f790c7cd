"""The metrics of an epoch: its mean losses, and the accuracy on the images of the training attack."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ltat.methods import LossTerms

Row = dict[str, Any]


@dataclass
class EpochMetrics:
    """Sums over an epoch, kept on the device so that the host never waits for a step."""

    classes: int
    device: torch.device
    logs: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    correct: Tensor = field(init=False)
    seen: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.correct = torch.zeros(self.classes, device=self.device)
        self.seen = torch.zeros(self.classes, device=self.device)

    @torch.no_grad()
    def add(self, terms: LossTerms, labels: Tensor) -> None:
        """Add one step."""
        self.steps += 1
        for name, value in {"loss": terms.loss.detach(), **terms.logs}.items():
            self.logs[name] = self.logs.get(name, 0) + value
        hits = (terms.logits.argmax(dim=1) == labels).float()
        self.correct.index_add_(0, labels, hits)
        self.seen.index_add_(0, labels, torch.ones_like(hits))

    def row(self) -> Row:
        """The epoch's means: losses, and accuracy on the training attack in percent, overall and per class."""
        correct, seen = self.correct.tolist(), self.seen.tolist()
        means: Row = {name: float(total) / self.steps for name, total in self.logs.items()}
        means["train_adv"] = 100 * sum(correct) / sum(seen)
        means["train_adv_per_class"] = [100 * c / n if n else None for c, n in zip(correct, seen, strict=True)]
        return means
