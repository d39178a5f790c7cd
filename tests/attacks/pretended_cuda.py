"""In place of torch.cuda where there is no GPU: writes down what a capture asks of it."""

import weakref
from contextlib import contextmanager
from types import SimpleNamespace


class PretendedCuda:
    """In place of torch.cuda: writes down what is asked of it."""

    def __init__(self, refused: str | None = None) -> None:
        self.said: list[str] = []
        self.refused = refused  # "begin" or "end": what a capture of more than nothing fails at
        self.graphs: list[weakref.ref] = []

    def Stream(self, device):
        return SimpleNamespace(name="side", wait_stream=lambda other: self.said.append(f"side waits for {other.name}"))

    def current_stream(self, device=None):
        return SimpleNamespace(name="main", wait_stream=lambda other: self.said.append(f"main waits for {other.name}"))

    def device(self, device):
        return self._within(device)

    def stream(self, stream):
        return self._within(stream.name)

    @contextmanager
    def _within(self, what):
        self.said.append(f"into {what}")
        try:
            yield
        finally:
            self.said.append(f"out of {what}")

    def graph_pool_handle(self):
        return "pool"

    def current_device(self):
        return 1

    def synchronize(self, device):
        self.said.append("synchronize")

    def empty_cache(self):
        self.said.append("empty the cache")

    def CUDAGraph(self):
        graph = PretendedGraph(self)
        self.graphs.append(weakref.ref(graph))
        return graph


class PretendedGraph:
    def __init__(self, cuda: PretendedCuda) -> None:
        self.said = cuda.said
        self.refused = cuda.refused

    def capture_begin(self, pool: str | None = None, capture_error_mode: str = "global") -> None:
        self.said.append(f"begin in {pool}, {capture_error_mode}")
        if pool is None:  # of nothing
            self.refused = None
        if self.refused == "begin":
            self._refuse()

    def capture_end(self) -> None:
        self.said.append("end")
        if self.refused:
            self._refuse()

    def _refuse(self) -> None:
        raise RuntimeError("the capture was invalidated\nby this or that")

    def replay(self) -> None:
        self.said.append("replay")
