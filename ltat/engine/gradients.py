"""The mean of the ranks' gradients, computed while backward still runs.

Gradients are collected in buckets, in the order in which backward completes them: the last layers' first. A full bucket
goes on its way at once, as one message, and backward goes on with the layers before.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

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
        self.model, self.ranks = model, ranks
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
                self._send(self.buckets[number])
        if self.buckets:
            self._send(self._trained_since())
        for gradients, message in self._sent:
            message.wait_into(gradients)
        self._sent.clear()
        self._missing = [len(bucket) for bucket in self.buckets]

    def _arrived(self, number: int) -> None:
        self._missing[number] -= 1
        if self._missing[number] == 0:
            self._send(self.buckets[number])

    def _trained_since(self) -> list[nn.Parameter]:
        """The weights that were frozen or missing when the buckets were made."""
        known = {parameter for bucket in self.buckets for parameter in bucket}
        return [parameter for parameter in self.model.parameters() if parameter not in known]

    def _send(self, parameters: list[nn.Parameter]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
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
    """Replace the running statistics of batch norm, which each rank took from its own images, by their means.

    Other buffers are the same on all ranks, and a mean of equal numbers may be rounded.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    statistics = [each for norm in norms for each in (norm.running_mean, norm.running_var)]
    ranks.mean_([each for each in statistics if each is not None])
