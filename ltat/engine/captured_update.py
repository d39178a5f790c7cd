"""The update, from the loss to the optimiser's step, as one CUDA graph.

Unlike an attack it has effects: weights, momentum and batch norm's statistics change where they lie. So nothing is run
for trial. The first steps are launched kernel by kernel, on the stream that will record; the next is recorded, which
executes nothing, and replayed for that very step.

A graph keeps the numbers of its epoch (the learning rate, ramps, AWP's warm-up) and the addresses (those of the class
counts), so it is good for that epoch. The next one begins with an eager step, since it may do what none has done yet
(AWP after its warm-up, TAET's second stage), and then records again, into the same memory.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from ltat.data import Batch
from ltat.engine.graphs import WARM_UP, Captured, layout_of, record, require_cuda
from ltat.engine.network import StepNetwork
from ltat.engine.working_copy import altered
from ltat.errors import LtatError
from ltat.methods import LossTerms, Method

T = TypeVar("T")
Update = Callable[[Batch, Tensor], LossTerms]


def why_update_not_captured(network: StepNetwork, method: Method) -> str | None:
    """Why the update of this training is launched kernel by kernel, in words; ``None`` where a graph can hold it."""
    if network.graphs is None:
        return "no graph was asked for"
    if network.compiled:
        return "torch.compile and a capture do not go together yet"
    if network.precision == "fp16":
        return "the loss scale of fp16 depends on a value that is read back"
    held = (value for value in vars(method).values() if isinstance(value, nn.Module))
    if any(map(altered, (network.model, *held))):
        return "a network has hooks or patched methods, which a replay would not call"
    if not hasattr(type(method).end_step, "unread_by_loss"):
        return f"end_step() of {type(method).__name__} may change what its loss reads"
    return None


class CudaRecorder:
    """Records functions with effects as CUDA graphs, one after the other, all into one pool of memory.

    Raises:
        LtatError: ``device`` is no GPU.
    """

    def __init__(self, device: torch.device) -> None:
        require_cuda(device)
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.graph: torch.cuda.CUDAGraph | None = None

    def eagerly(self, function: Callable[[], T]) -> T:
        """Run ``function`` on the stream that records, between what comes before and after it on the present one.

        That loads kernels, makes the handles of the libraries and lets cuDNN choose. And backward runs on the stream
        of the forward: it must know no other when it is recorded.
        """
        present = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(present)
        with torch.cuda.stream(self.stream):
            result = function()
        present.wait_stream(self.stream)
        return result

    def record(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """What runs ``function`` once more, and its result, which every such run writes anew. Nothing is executed.

        Raises:
            LtatError: the function does what a graph cannot hold, such as reading a value back.
        """
        torch.cuda.synchronize(self.device)  # the last graph, which goes at the end, must not be running
        if self.graph is None:
            torch.cuda.empty_cache()  # what the eager steps left is of no use to the pool
        # Only now the last one may go: a pool that no graph holds cannot be recorded into.
        self.graph, result = record(function, self.stream, self.pool)
        return self.graph.replay, result


class CapturedUpdate:
    """The update of one stage, by a graph where one has been recorded in this epoch.

    One layout of batches is recorded; a smaller last batch is launched kernel by kernel.

    Args:
        recorder: what runs and records; another one serves tests without a GPU.
        method: what the update asks for its loss.
    """

    def __init__(self, recorder: CudaRecorder, method: Method) -> None:
        self.recorder = recorder
        self.method = method
        self._eager_steps: Counter[Hashable] = Counter()
        self._recorded: _Recorded | None = None

    def begin_epoch(self) -> None:
        """The numbers of the last epoch hold no longer."""
        self._recorded = None
        self._eager_steps = Counter({layout: min(n, WARM_UP - 1) for layout, n in self._eager_steps.items()})

    def run(self, update: Update, batch: Batch, x_adv: Tensor) -> LossTerms:
        """``update(batch, x_adv)``; its terms are without gradient and nobody else writes into them.

        Raises:
            LtatError: the update cannot be captured, or the method has changed what it would read.
        """
        inputs = (*batch, x_adv)
        layout = tuple(map(layout_of, inputs))
        if self._recorded is None and self._eager_steps[layout] >= WARM_UP:
            self._recorded = _Recorded(self.recorder, self.method, update, inputs)
        if self._recorded is None or self._recorded.layout != layout:
            self._eager_steps[layout] += 1
            return _detached(self.recorder.eagerly(partial(update, batch, x_adv)))
        return self._recorded.replay(inputs)


class _Recorded:
    def __init__(self, recorder: CudaRecorder, method: Method, update: Update, inputs: tuple[Tensor, ...]) -> None:
        self.layout = tuple(map(layout_of, inputs))
        self.method = method
        self.attributes = dict(vars(method))
        self.graph = Captured(
            lambda function, device: recorder.record(function),
            lambda *buffers: _detached(update(Batch(*buffers[:-1]), buffers[-1])),
            inputs,
        )

    def replay(self, inputs: tuple[Tensor, ...]) -> LossTerms:
        for name, value in vars(self.method).items():
            if value is not self.attributes.get(name):
                raise LtatError(
                    f"{type(self.method).__name__} has set {name} between two steps, which a CUDA graph does not see; "
                    "use train.graph=false, or write into a tensor in place"
                )
        loss, logits, logs = self.graph(inputs)
        return LossTerms(loss.clone(), logits.clone(), {name: value.clone() for name, value in logs.items()})


def _detached(terms: LossTerms) -> LossTerms:
    # No node of autograd may outlive its step: it would tie the next backward to the stream of this one.
    return LossTerms(terms.loss.detach(), terms.logits, terms.logs)
