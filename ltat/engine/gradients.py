"""The mean of the ranks' gradients, computed while backward still runs.

Gradients are collected in buckets, in the order in which backward completes them: the last layers' first. A full bucket
goes on its way at once, as one message, and backward goes on with the layers before.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ltat.ranks import Message, Ranks

BUCKET_BYTES = 8 * 2**20


class _Sent(NamedTuple):
    gradients: list[Tensor]
    message: Message


class MeanGradients:
    """Replaces the gradients of a network's weights by their means over the ranks; :meth:`wait` ends each backward.

    Args:
        model: the network; every rank has the same.
        ranks: those that share each batch; with one nothing is done.
        bucket_bytes: the least size of a message but for the last.
    """

    def __init__(self, model: nn.Module, ranks: Ranks, bucket_bytes: int = BUCKET_BYTES) -> None:
        self.ranks = ranks
        self.buckets: list[list[nn.Parameter]] = []
        self._sent: list[_Sent] = []
        if ranks.size > 1:
            self.buckets = in_buckets([p for p in model.parameters() if p.requires_grad], bucket_bytes)
            for number, bucket in enumerate(self.buckets):
                for parameter in bucket:
                    parameter.register_post_accumulate_grad_hook(lambda _, number=number: self._arrived(number))
        self._missing = [len(bucket) for bucket in self.buckets]

    def wait(self) -> None:
        """Send what backward left over, and wait until the gradients of all weights are means."""
        for number, missing in enumerate(self._missing):
            if missing:  # a weight without a gradient has none on any rank
                self._send(number)
        for gradients, message in self._sent:
            message.wait_into(gradients)
        self._sent.clear()
        self._missing = [len(bucket) for bucket in self.buckets]

    def _arrived(self, number: int) -> None:
        self._missing[number] -= 1
        if self._missing[number] == 0:
            self._send(number)

    def _send(self, number: int) -> None:
        gradients = [parameter.grad for parameter in self.buckets[number] if parameter.grad is not None]
        if gradients:
            self._sent.append(_Sent(gradients, self.ranks.send_mean(gradients)))


def in_buckets(parameters: Sequence[nn.Parameter], limit: int) -> list[list[nn.Parameter]]:
    """The parameters from the last to the first, in groups of ``limit`` bytes or more, the last of fewer.

    A group ends with the parameter that fills it: a large one beside it would leave a small one a message of its own.
    """
    buckets: list[list[nn.Parameter]] = []
    size = limit
    for parameter in reversed(parameters):
        if size >= limit:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel() * parameter.element_size()
    return buckets


def average_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Replace the running statistics of batch norm, which each rank took from its own images, by their means."""
    ranks.mean_([buffer for buffer in model.buffers() if buffer.is_floating_point()])
