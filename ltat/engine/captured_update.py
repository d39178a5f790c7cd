"""The update, from the loss to the optimiser's step, as one CUDA graph.

Unlike an attack it has effects: weights, momentum and batch norm's statistics change where they lie. So nothing is run
for trial. The first steps are launched kernel by kernel, on the stream that will record; the next is recorded, which
executes nothing, and replayed for that very step.

A graph keeps the numbers of its epoch (the learning rate, ramps, AWP's warm-up) and the addresses (those of the class
counts), so it is good for that epoch. The next one begins with an eager step, since it may do what none has done yet
(AWP after its warm-up, TAET's second stage), and then records again, into the same memory.

Whether an update can be captured shows while it runs: one that reads attributes which change between two steps, draws
random numbers on the host, or does what no graph can hold, is launched kernel by kernel from then on. So is one whose
graph fails the check: its first replays are compared with the eager update, run before them from the same state.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from ltat.engine.graphs import WARM_UP, Captured, layout_of, record, require_cuda
from ltat.engine.host_state import Attributes, host_generators
from ltat.engine.network import StepNetwork
from ltat.engine.self_check import NO_MEMORY, NOT_REPEATABLE, OTHER_BITS, Snapshot, same_bits
from ltat.engine.working_copy import altered
from ltat.errors import LtatError
from ltat.ranks import ALONE, Ranks

T = TypeVar("T")
ANOTHER_GAVE_UP = "another rank cannot capture it"


def why_update_not_captured(network: StepNetwork, reads: object) -> str | None:
    """Why an update of ``network`` is launched kernel by kernel, in words; ``None`` where a graph may hold it.

    Args:
        network: as the steps run it.
        reads: the object that computes the loss, with its other networks as attributes.
    """
    if network.graphs is None:
        return "no graph was asked for"
    if network.compiled:
        return "torch.compile and a capture do not go together yet"
    if network.precision == "fp16":
        return "the loss scale of fp16 depends on a value that is read back"
    others = (value for value in vars(reads).values() if isinstance(value, nn.Module))
    if any(map(altered, (network.model, *others))):
        return "a network has hooks or patched methods, which a replay would not call"
    return None


class CudaRecorder:
    """Records functions with effects as CUDA graphs, one after the other, all into one pool of memory.

    Raises:
        LtatError: ``device`` is not a GPU.
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

    def discard(self) -> None:
        """Free the last graph and its memory; nothing is recorded after that."""
        torch.cuda.synchronize(self.device)
        self.graph = None


class EagerUpdate(Generic[T]):
    """An update that is launched kernel by kernel, because of ``why_not``."""

    def __init__(self, why_not: str) -> None:
        self.why_not: str | None = why_not

    def begin_epoch(self) -> None:
        """Nothing is kept from epoch to epoch."""

    def run(self, update: Callable[..., T], inputs: Sequence[Tensor]) -> T:
        """``update(*inputs)``."""
        return update(*inputs)


class CapturedUpdate(Generic[T]):
    """The update of one stage, by a graph where one has been recorded in this epoch.

    One layout of batches is recorded; a smaller last batch is launched kernel by kernel.

    Args:
        recorder: what runs and records; another one serves tests without a GPU.
        reads: the object whose attributes the update reads.
        changes: the tensors that an update may change, or more.
        checks: replays, the first ones, that must leave the bits of the eager update; with 0 nothing is compared.
        ranks: those that share each batch. A message that one of them replays all must replay, so they agree before
            every step.

    Attributes:
        why_not: why the update is launched kernel by kernel for the rest of the run, in words; ``None`` while a graph
            may hold it.
    """

    def __init__(
        self,
        recorder: CudaRecorder,
        reads: object,
        changes: Callable[[], Iterable[Tensor]],
        checks: int = 0,
        ranks: Ranks = ALONE,
    ) -> None:
        self.recorder = recorder
        self.reads = reads
        self.changes = changes
        self.ranks = ranks
        self.why_not: str | None = None
        self._all_gave_up = False
        self._unchecked = checks
        self._eager_steps: Counter[Hashable] = Counter()
        self._before: Attributes | None = None
        self._recorded: _Recorded[T] | None = None

    def begin_epoch(self) -> None:
        """Forget the numbers of the last epoch."""
        self._recorded = self._before = None
        self._eager_steps = Counter({layout: min(n, WARM_UP - 1) for layout, n in self._eager_steps.items()})

    def run(self, update: Callable[..., T], inputs: Sequence[Tensor]) -> T:
        """``update(*inputs)``, by the graph where one fits; nobody else writes into the tensors of its result.

        Args:
            update: returns a tensor, or tuples and dictionaries of tensors, none of which requires a gradient: no node
                of autograd may outlive its step, since it would tie the next backward to the stream of this one.
            inputs: of one device.
        """
        layout = tuple(map(layout_of, inputs))
        if self._all_are_ready(inputs[0].device) and self._is_due(layout):
            return (self._checked if self._unchecked else self._captured)(update, inputs)
        self._eager_steps[layout] += 1
        return self._eagerly(partial(update, *inputs))

    def _all_are_ready(self, device: torch.device) -> bool:
        """Whether a graph would do on every rank; where one rank has given up, the others do too."""
        ready = self.why_not is None and self._same_attributes(device)
        if self._all_gave_up:
            return False
        unready, self._all_gave_up = self.ranks.any_(not ready, self.why_not is not None)
        if self._all_gave_up and self.why_not is None:
            self._give_up(ANOTHER_GAVE_UP)
        return not unready

    def _is_due(self, layout: Hashable) -> bool:
        """Whether a batch of this layout has its graph, or is to have it now."""
        if self._recorded is None:
            return self._eager_steps[layout] >= WARM_UP
        return self._recorded.layout == layout

    def _captured(self, update: Callable[..., T], inputs: Sequence[Tensor]) -> T:
        if self._recorded is None:
            self._record(update, inputs)
        if self._recorded is None:
            return self._eagerly(partial(update, *inputs))
        return self._recorded.replay(inputs)

    def _checked(self, update: Callable[..., T], inputs: Sequence[Tensor]) -> T:
        """The update eagerly, then from the same state by the graph; where they differ, the eager one has been run."""
        eager, device = partial(update, *inputs), inputs[0].device
        try:
            before, after = (Snapshot(self.changes(), device) for _ in range(2))
        except torch.OutOfMemoryError:
            self._give_up(NO_MEMORY)
            return self._eagerly(eager)
        expected = self._eagerly(eager)
        # What an update changes on the host is not put back, so one that does is not run a second time.
        if self.why_not is not None or not self._same_attributes(device):
            return expected
        after.renew()
        before.put_back()
        found = self._captured(update, inputs)
        self._unchecked -= 1
        if self.why_not is not None or (after.holds() and same_bits(found, expected)):
            return found
        before.put_back()
        again = self._eagerly(eager)
        self._give_up(OTHER_BITS if after.holds() and same_bits(again, expected) else NOT_REPEATABLE)
        after.put_back()
        return expected

    def _same_attributes(self, device: torch.device) -> bool:
        """Whether all attributes are as they were a step ago; where not, a graph is given up once one is due."""
        before, self._before = self._before, Attributes(self.reads, device)
        name = before and before.changed(self._before)
        if name and (self._recorded is not None or max(self._eager_steps.values()) >= WARM_UP):
            kind = type(self.reads).__name__
            self._give_up(f"{kind} changes its attribute {name} between two steps, which a replay would not see")
        return name is None

    def _record(self, update: Callable[..., T], inputs: Sequence[Tensor]) -> None:
        try:
            self._recorded = _Recorded(self.recorder, update, inputs)
        except LtatError as why:
            self._give_up(str(why).partition("; ")[0])  # without the remedy, which is what happens now
        if self.ranks.any_(self._recorded is None)[0] and self._recorded is not None:
            self._give_up(ANOTHER_GAVE_UP)

    def _eagerly(self, update: Callable[[], T]) -> T:
        if self.why_not is not None:
            return self.recorder.eagerly(update)
        before = host_generators()
        result = self.recorder.eagerly(update)
        if host_generators() != before:
            self._give_up("it draws random numbers on the host, which a replay would not")
        return result

    def _give_up(self, why: str) -> None:
        self.why_not, self._before, self._recorded = why, None, None
        self.recorder.discard()


class _Recorded(Generic[T]):
    def __init__(self, recorder: CudaRecorder, update: Callable[..., T], inputs: Sequence[Tensor]) -> None:
        self.layout = tuple(map(layout_of, inputs))
        self.update = update  # what it refers to stays where the graph reads it
        self.graph: Captured[T] = Captured(lambda function, device: recorder.record(function), update, inputs)

    def replay(self, inputs: Sequence[Tensor]) -> T:
        result: T = _cloned(self.graph(inputs))
        return result


def _cloned(nest: Any) -> Any:
    if isinstance(nest, Tensor):
        return nest.clone()
    if isinstance(nest, dict):
        return {name: _cloned(value) for name, value in nest.items()}
    parts = [_cloned(part) for part in nest]
    return type(nest)(*parts) if hasattr(nest, "_fields") else tuple(parts)


def update_runner(
    network: StepNetwork,
    reads: object,
    changes: Callable[[], Iterable[Tensor]],
    device: torch.device,
    ranks: Ranks = ALONE,
) -> EagerUpdate[Any] | CapturedUpdate[Any]:
    """What runs the updates of ``network``: by a CUDA graph where one may hold them, checked where the attack's is.

    Args:
        network: as the steps run it.
        reads: the object that computes the loss.
        changes: the tensors that an update may change, or more.
        device: of the training.
        ranks: those that share each batch. One of them alone must not find that its graph fails the check.
    """
    why_not = why_update_not_captured(network, reads)
    if why_not is None and ranks.size > 1 and network.graphs is not None and network.graphs.checks:
        why_not = "several ranks share a batch and none can check its graph alone; train.graph=true captures unchecked"
    if why_not:
        return EagerUpdate(why_not)
    assert network.graphs is not None
    return CapturedUpdate(CudaRecorder(device), reads, changes, network.graphs.checks, ranks)
