"""CUDA graphs of functions of tensors: captured once for each layout of the inputs, replayed on new values.

A graph replays the same kernels on the same addresses. Its inputs therefore have static buffers, into which every call
copies, and its output is cloned before the next replay overwrites it. Whatever else the function reads is frozen at the
capture and belongs in the key: numbers by value, tensors that others change in place by their address.

:class:`Graphs` is for functions without side effects, which may run several times before the capture. The training
update has side effects: see :mod:`ltat.engine.captured_update`.
"""

import gc
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ltat.engine.self_check import NOT_REPEATABLE, OTHER_BITS, REPLAYS, same_bits
from ltat.errors import LtatError

T = TypeVar("T")
Capture = Callable[[Callable[[], T], torch.device], tuple[Callable[[], None], T]]
"""(function, device) → a replay, and the static output that every replay overwrites."""
WARM_UP = 3


def capture_on_cuda(function: Callable[[], T], device: torch.device) -> tuple[Callable[[], None], T]:
    """Capture ``function`` as a CUDA graph, after a few eager runs on the capturing stream as a warm-up.

    The warm-up loads kernels, creates the handles of the libraries and lets cuDNN choose its algorithms, none of which
    may happen in a capture.

    Raises:
        LtatError: ``device`` is not a GPU, or the function does what a graph cannot hold, such as reading a value back.
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
    """``function`` as a CUDA graph of ``stream``, and its static output; a capture executes nothing.

    ``torch.cuda.graph`` is not used: it empties the allocator's cache every time, and leaves its stream the current
    one when a capture fails.

    Args:
        function: has run on ``stream`` before, as a warm-up.
        stream: idle.
        pool: of ``torch.cuda.graph_pool_handle``, the memory to allocate from; a new one if None.

    Raises:
        LtatError: the function does what a graph cannot hold, such as reading a value back.
    """
    graph, pool = torch.cuda.CUDAGraph(), pool or torch.cuda.graph_pool_handle()
    with torch.cuda.stream(stream), _collector_paused():
        try:
            # Thread-local: a loader's thread may pin memory meanwhile.
            graph.capture_begin(pool, capture_error_mode="thread_local")
            result = function()
            graph.capture_end()
        except RuntimeError as error:
            _give_up(graph, pool)
            why = str(error).partition("\n")[0]
            raise LtatError(f"this cannot be captured as a CUDA graph ({why}); use train.graph=false") from error
        except BaseException:
            _give_up(graph, pool)
            raise
    return graph, result


def _give_up(graph: torch.cuda.CUDAGraph, pool: Any) -> None:
    """Leave torch, on the present stream, as if the failed capture of ``graph`` had not been begun."""
    try:
        graph.capture_end()
    except RuntimeError:
        # Up to torch 2.12 the allocator still counts the capture as under way: it would give back no memory, and fail
        # an assertion where it is asked to. Later versions have ended it, and refuse.
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
    # torch's generator stays in capture mode until a capture succeeds, so nothing is captured.
    with suppress(RuntimeError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about an empty graph
        nothing = torch.cuda.CUDAGraph()
        nothing.capture_begin()
        nothing.capture_end()


@contextmanager
def _collector_paused() -> Iterator[None]:
    """CUDA forbids the destruction of a graph during a capture, which the garbage collector might cause."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def require_cuda(device: torch.device) -> None:
    """Raises: LtatError unless ``device`` is a GPU."""
    if device.type != "cuda":
        raise LtatError(f"CUDA graphs were asked for and the images are on {device}; move network and images to a GPU")


class Graphs:
    """A cache of the ``size`` most recently used graphs. A copy of this object begins empty.

    Args:
        capture: captures a function; tests without a GPU pass another one.
        size: graphs to keep; each holds the memory of a whole run of its function.
        checks: replays, the first ones, that must give the bits of the function itself. Where they do not, or where a
            capture fails, the graphs are given up. With 0 nothing is compared, and a capture that fails raises.

    Attributes:
        why_not: why the graphs have been given up, in words; ``None`` while they are in use.
    """

    def __init__(self, capture: Capture[Tensor] = capture_on_cuda, size: int = 3, checks: int = 0) -> None:
        self.capture = capture
        self.size = size
        self.checks = checks
        self.why_not: str | None = None
        self._unchecked = checks
        self._kept: OrderedDict[Hashable, Captured[Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.capture, self.size, self.checks)

    def run(self, function: Callable[..., Tensor], inputs: Sequence[Tensor], key: Hashable) -> Tensor:
        """``function(*inputs)``, as a new tensor, by the graph of ``key`` and of the inputs' layouts.

        Args:
            function: has no side effects and draws no random numbers.
            inputs: tensors on one device, without gradient.
            key: whatever else the result depends on; kept alive as long as the graph.

        Raises:
            LtatError: a capture fails, and nothing is to be checked.
        """
        run = self._checked if self._unchecked else self._replayed
        return run(function, inputs, key)

    def _checked(self, function: Callable[..., Tensor], inputs: Sequence[Tensor], key: Hashable) -> Tensor:
        expected = function(*inputs)
        try:
            found = self._replayed(function, inputs, key)
        except LtatError as error:
            self._give_up(str(error).partition("; ")[0])  # without the remedy, which is what happens now
            return expected
        if not same_bits(found, expected):
            self._give_up(OTHER_BITS if same_bits(function(*inputs), expected) else NOT_REPEATABLE)
            return expected
        self._unchecked -= 1
        return found

    def _give_up(self, why: str) -> None:
        self.why_not = why
        self._kept.clear()  # safe here: a comparison has synchronised the device, or nothing is running

    def _replayed(self, function: Callable[..., Tensor], inputs: Sequence[Tensor], key: Hashable) -> Tensor:
        whole = (key, tuple(map(layout_of, inputs)))
        if whole not in self._kept:
            self._kept[whole] = Captured(self.capture, function, inputs)
        self._kept.move_to_end(whole)
        while len(self._kept) > self.size:  # safe here: a capture has synchronised the device
            self._kept.popitem(last=False)
        return self._kept[whole](inputs).clone()


def graphs_for(asked: bool | str, device: torch.device) -> Graphs | None:
    """Where the attacks of a training keep their graphs, or ``None`` where they are launched step by step.

    Args:
        asked: the setting ``train.graph``; with "auto" graphs are for a GPU only, and are checked.
        device: of the training.
    """
    if asked == "auto":
        return Graphs(checks=REPLAYS) if device.type == "cuda" else None
    return Graphs() if asked else None


class Captured(Generic[T]):
    """A captured function of ``inputs``, with its static input buffers."""

    def __init__(self, capture: Capture[T], function: Callable[..., T], inputs: Sequence[Tensor]) -> None:
        self.inputs = buffers = [torch.empty_like(tensor) for tensor in inputs]
        self._fill(inputs)
        self.replay, self.output = capture(lambda: function(*buffers), inputs[0].device)

    def __call__(self, inputs: Sequence[Tensor]) -> T:
        """The static output, which the next call overwrites."""
        self._fill(inputs)
        self.replay()
        return self.output

    @torch.no_grad()
    def _fill(self, inputs: Sequence[Tensor]) -> None:
        for buffer, tensor in zip(self.inputs, inputs, strict=True):
            buffer.copy_(tensor)


def layout_of(tensor: Tensor) -> Hashable:
    """Shape, strides, dtype and device, which two tensors must share to be inputs of one graph."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device
