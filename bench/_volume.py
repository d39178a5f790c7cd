"""What a rank sends in one update, counted without other ranks."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import torch
from torch import Tensor

from bench._training import Workload, make_trainer, random_split
from ltat.ranks import Message, Ranks, Share

SIZE, BATCH = 8, 16


@dataclass(frozen=True)
class CountingRanks(Ranks):
    """One of several ranks whose messages are counted and not sent: it hears of the others what it says itself.

    Each kind of message has a way of its own through :class:`Ranks`.
    """

    sent: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def _count(self, kind: str, *tensors: Tensor, times: int = 1) -> None:
        self.sent[kind].append(times * sum(tensor.numel() * tensor.element_size() for tensor in tensors))

    def joined(self, rows: Tensor, share: Share) -> Tensor:
        self._count("logits", rows, times=self.size)
        return rows.repeat(self.size, *(1 for _ in rows.shape[1:]))

    def stacked(self, own: Tensor) -> Tensor:
        self._count("batch norm, forward", own)
        return own.repeat(self.size, 1)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        self._count("batch norm, backward", *tensors)
        for tensor in tensors:
            tensor.mul_(self.size)

    def send_mean(self, tensors: Sequence[Tensor]) -> Message:
        self._count("gradients", *tensors)
        arrived = SimpleNamespace(wait=lambda: None)
        return Message(torch.cat([tensor.detach().reshape(-1) for tensor in tensors]), arrived)

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        self._count("statistics of batch norm", *tensors)


def sent_in_update(model: str, sync_bn: bool) -> dict[str, list[int]]:
    """The bytes of every message of an AT-BSL update by kind, of rank 0 of :data:`SIZE`, for :data:`BATCH` images."""
    settings = (f"model.name={model}", f"train.batch_size={BATCH}", f"train.sync_bn={str(sync_bn).lower()}")
    workload = Workload(random_split((BATCH,) * 10), (*settings, "data.name=cifar10"), torch.device("cpu"))
    ranks = CountingRanks(0, SIZE)
    trainer = make_trainer(workload, (), ranks)
    step = trainer.step(next(iter(trainer.stage.loader.epoch(1))), 1, 0, trainer.class_counts(1))
    trainer.update(replace(step.for_loss(), x_adv=step.batch.images))
    return dict(ranks.sent)
