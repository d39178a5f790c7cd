"""CUDA graphs of functions of tensors: recorded once for each layout of the inputs, replayed on fresh numbers.

A graph replays the same kernels on the same addresses. So its inputs live in buffers of their own, into which every
call copies, and its output is copied before the next replay writes over it. Whatever else the function reads is frozen
at the capture and belongs in the key: numbers by value, tensors that others change in place by their address.

:class:`Graphs` is for functions without effects, which may be run for trial. The training update, which has some, is
captured by :mod:`ltat.engine.captured_update`.
"""

import gc
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ltat.errors import LtatError

T = TypeVar("T")
Capture = Callable[[Callable[[], T], torch.device], tuple[Callable[[], None], T]]
"""(function, device) → what runs it once more, and the tensors that hold its result after every run."""
WARM_UP = 3


def capture_on_cuda(function: Callable[[], T], device: torch.device) -> tuple[Callable[[], None], T]:
    """Record ``function`` as a CUDA graph, after a few ordinary runs on the stream that records it.

    The runs load kernels, create the handles of the libraries and let cuDNN choose; none of that may happen inside.

    Raises:
        LtatError: ``device`` is no GPU, or the function does what a graph cannot hold, such as reading a value back.
    """
    require_cuda(device)
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize(device)
        graph, output = record(function, stream)
    return graph.replay, output


def record(function: Callable[[], T], stream: torch.cuda.Stream, pool: Any = None) -> tuple[torch.cuda.CUDAGraph, T]:
    """``function`` as a CUDA graph of ``stream``, and its result, which every replay writes anew; it is not executed.

    Not by ``torch.cuda.graph``, which empties the allocator's cache every time, and leaves its stream the current one
    when a capture fails.

    Args:
        function: has run on ``stream`` before, so that there is nothing left to load or to choose.
        stream: of which the device has done all that was asked for.
        pool: of ``torch.cuda.graph_pool_handle``, the memory to allocate from; one of its own if None.

    Raises:
        LtatError: the function does what a graph cannot hold, such as reading a value back.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream), _collector_paused():
        # Only of this thread: a loader's thread may go on to pin memory.
        graph.capture_begin(pool, capture_error_mode="thread_local")
        try:
            result = function()
            graph.capture_end()
        except RuntimeError as error:
            _give_up(graph)
            why = str(error).partition("\n")[0]
            raise LtatError(f"this cannot be captured as a CUDA graph ({why}); use train.graph=false") from error
        except BaseException:
            _give_up(graph)
            raise
    return graph, result


def _give_up(graph: torch.cuda.CUDAGraph) -> None:
    """End a capture that has failed, then make one of nothing: torch's generator goes on capturing until one ends."""
    with suppress(RuntimeError):
        graph.capture_end()
    with suppress(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is empty
        nothing = torch.cuda.CUDAGraph()
        nothing.capture_begin()
        nothing.capture_end()


@contextmanager
def _collector_paused() -> Iterator[None]:
    """A graph that the collector found during a capture would be destroyed there, which CUDA forbids."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def require_cuda(device: torch.device) -> None:
    """Raises: LtatError where ``device`` is no GPU."""
    if device.type != "cuda":
        raise LtatError(f"CUDA graphs were asked for and the images are on {device}; move network and images to a GPU")


class Graphs:
    """The graphs that were captured, the most recently used ``size`` of them. A copy of this object begins empty.

    Args:
        capture: how a function is recorded; another one serves tests without a GPU.
        size: graphs to keep; each holds the memory of a whole run of its function.
    """

    def __init__(self, capture: Capture[Tensor] = capture_on_cuda, size: int = 3) -> None:
        self.capture = capture
        self.size = size
        self._kept: OrderedDict[Hashable, Captured[Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.capture, self.size)

    def run(self, function: Callable[..., Tensor], inputs: Sequence[Tensor], key: Hashable) -> Tensor:
        """``function(*inputs)``, a tensor of its own, by the graph of ``key`` and of the inputs' layouts.

        Args:
            function: has no effect but its result, and draws no random numbers.
            inputs: tensors of one device, without gradient.
            key: what else decides the result. What it refers to is kept alive as long as the graph.
        """
        whole = (key, tuple(map(layout_of, inputs)))
        if whole not in self._kept:
            self._kept[whole] = Captured(self.capture, function, inputs)
        self._kept.move_to_end(whole)
        while len(self._kept) > self.size:  # now, since a capture has waited for all that the device had to do
            self._kept.popitem(last=False)
        return self._kept[whole](inputs).clone()


class Captured(Generic[T]):
    """A function of ``inputs`` as ``capture`` recorded it, with the buffers that it reads."""

    def __init__(self, capture: Capture[T], function: Callable[..., T], inputs: Sequence[Tensor]) -> None:
        self.inputs = buffers = [torch.empty_like(tensor) for tensor in inputs]
        self._fill(inputs)
        self.replay, self.output = capture(lambda: function(*buffers), inputs[0].device)

    def __call__(self, inputs: Sequence[Tensor]) -> T:
        """The tensors of the recorded result themselves, over which the next call writes."""
        self._fill(inputs)
        self.replay()
        return self.output

    @torch.no_grad()
    def _fill(self, inputs: Sequence[Tensor]) -> None:
        for buffer, tensor in zip(self.inputs, inputs, strict=True):
            buffer.copy_(tensor)


def layout_of(tensor: Tensor) -> Hashable:
    """What two tensors must share to be inputs of one graph."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device
