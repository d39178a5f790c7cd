"""The metrics of an epoch: its mean losses, and the accuracy on the images of the training attack."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ltat.methods import LossTerms

Row = dict[str, Any]


@dataclass
class EpochMetrics:
    """Sums over an epoch, kept on the device so that the host never waits for a step.

    Attributes:
        classes: C.
        device: of the training.
        logs: the sum of each recorded value, 0-dim.
        steps: the steps that are in the sums.
        seconds_before: what an interrupted run had spent on the epoch.
        correct: images of each class that the network classified correctly, [C].
        seen: images of each class, [C].
    """

    classes: int
    device: torch.device
    logs: dict[str, Tensor] = field(default_factory=dict)
    steps: int = 0
    seconds_before: float = 0.0
    correct: Tensor = field(init=False)
    seen: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.correct = torch.zeros(self.classes, device=self.device)
        self.seen = torch.zeros(self.classes, device=self.device)

        self.start()

    def start(self) -> None:
        """Measure the time from now on."""
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """The time spent on the epoch."""
        return self.seconds_before + time.perf_counter() - self._started

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
        """The epoch's means: losses, accuracy on the training attack in percent, overall and per class; its speed."""
        correct, seen = self.correct.tolist(), self.seen.tolist()
        means: Row = {name: float(total) / self.steps for name, total in self.logs.items()}
        means["train_adv"] = 100 * sum(correct) / sum(seen)
        means["train_adv_per_class"] = [100 * c / n if n else None for c, n in zip(correct, seen, strict=True)]
        seconds = self.seconds
        return {**means, "seconds": seconds, "images_per_s": sum(seen) / seconds}

    def state_dict(self) -> dict[str, Any]:
        """The sums and the time so far."""
        sums = {"logs": self.logs, "correct": self.correct, "seen": self.seen}
        return {"steps": self.steps, "seconds": self.seconds, **sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.steps, self.seconds_before = state["steps"], float(state["seconds"])
        self.logs = {name: total.to(self.device) for name, total in state["logs"].items()}
        self.correct.copy_(state["correct"])
        self.seen.copy_(state["seen"])
