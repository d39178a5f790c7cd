"""What is measured on a GPU, with stand-ins for it: who takes part, what a failed capture costs, and what is judged."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from bench import end_to_end, report, train_step
from bench._harness import TRIALS, Spread
from bench._training import (
    FASTEST,
    GRAPH,
    GRAPH_SETTINGS,
    SETTINGS,
    Workload,
    gpu_settings,
    make_trainer,
    random_split,
)
from bench.rows import Measured, Row
from bench.targets import TARGETS

GPU, CPU = torch.device("cuda"), torch.device("cpu")
SMALL = (
    "data.name=cifar10",
    "model.name=small",
    "train.batch_size=4",
    "teacher.batch_size=4",
    "attack.steps=1",
    "train.epochs=2",
)
WITH_A_NETWORK = ("end_to_end", "train_step")


def fails() -> None:
    raise RuntimeError("no capture")


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], dict]:
    """The candidates of an epoch on a GPU, where a capture succeeds or fails."""

    def found(capture: bool) -> dict:
        monkeypatch.setattr(end_to_end, "plain_epochs", lambda *given: list)
        ours = lambda workload, own: list if capture or own != GRAPH_SETTINGS else fails  # noqa: E731
        monkeypatch.setattr(end_to_end, "ltat_epochs", ours)
        return end_to_end.gpu_candidates(SimpleNamespace(device=GPU))

    return found


def test_an_epoch_on_a_gpu_is_measured_of_no_more_than_its_targets_need(epochs):
    assert list(epochs(True)) == ["plain", FASTEST, GRAPH]


def test_an_epoch_that_cannot_be_captured_leaves_the_other_rows(epochs):
    assert list(epochs(False)) == ["plain", FASTEST]


def test_the_students_epoch_is_of_the_main_method_and_shows_its_teacher_every_image(monkeypatch: pytest.MonkeyPatch):
    measured: dict[str, dict] = {}
    monkeypatch.setattr(end_to_end, "append", lambda name, case, device, rows: measured.update({case: rows}))
    monkeypatch.setattr(end_to_end, "compare", lambda runs, device, rounds, **given: runs)
    monkeypatch.setattr(end_to_end, "plain_epochs", lambda *given: "plain")
    monkeypatch.setattr(end_to_end, "ltat_epochs", lambda workload, own: lambda: workload.config(*own))
    end_to_end.main.callback.__wrapped__(GPU, 1)
    methods = {case: rows[GRAPH]().method for case, rows in measured.items()}
    wanted = {t.case for t in TARGETS if t.on_gpu and t.bench == "end_to_end" and "an epoch" in t.case}
    assert methods.keys() == wanted and methods["CIFAR-10-LT, resnet18, an epoch of self-distill"] == "self-distill"
    assert all(rows[GRAPH]().train.graph for rows in measured.values())


def test_a_trainer_of_a_method_that_distils_is_given_a_teacher():
    workload = Workload(random_split((12, 6, 4)), ("method=self-distill", *SMALL), CPU)
    row = make_trainer(workload, SETTINGS[FASTEST]).run_epoch()
    assert row["kd"] >= 0 and row["seconds"] > 0


def test_a_step_is_compiled_on_a_gpu_only_where_a_mode_is_tried(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LTAT_BENCH_MODES", "")
    assert list(gpu_settings(GPU)) == [GRAPH] and gpu_settings(CPU) == {}
    monkeypatch.setenv("LTAT_BENCH_MODES", "default")
    assert list(gpu_settings(GPU)) == [GRAPH, f"{FASTEST} compile"]


@pytest.mark.parametrize("measured", [{"plain", FASTEST, GRAPH, "plain graph"}, {"plain", FASTEST}])
def test_the_peak_is_reported_of_the_graph_where_it_could_be_captured(measured, monkeypatch: pytest.MonkeyPatch):
    rows: dict[str, Spread] = {}
    monkeypatch.setattr(train_step, "peak_mib", lambda case, candidate: float(len(candidate)))
    monkeypatch.setattr(train_step, "write_rows", lambda *given: rows.update(given[-1]))
    train_step.bench_memory(train_step.MemoryCase("resnet18", 128, GPU), measured)
    assert rows.keys() == measured - {"plain graph"}
    assert all(spread.median == len(candidate) for candidate, spread in rows.items())


class Allocator:
    """Stands in for torch.cuda: 100 bytes stand; a search takes 900, a step 20 and briefly 5, a graph's pool 50."""

    def __init__(self) -> None:
        self.pool = self.cache = self.peak = self.steps = 0

    def memory_reserved(self) -> int:
        return 100 + self.pool + self.cache

    def max_memory_reserved(self) -> int:
        return self.peak

    def empty_cache(self) -> None:
        self.cache = 0

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.memory_reserved()

    def step(self) -> None:
        self.steps += 1
        self.cache = max(self.cache, 20, 900 if self.steps == 1 else 0)
        if self.steps == TRIALS - 1:
            self.pool = 50
        self.peak = max(self.peak, self.memory_reserved() + 5)


def test_a_peak_on_a_gpu_has_the_graphs_pool_and_no_search_for_algorithms(monkeypatch: pytest.MonkeyPatch):
    allocator = Allocator()
    monkeypatch.setattr(torch, "cuda", allocator)
    assert train_step.device_peak(allocator.step) == 20 + 5 + 50


def rows_of(target, **medians: float) -> Measured:
    common = {"date": "2026-01-01", "hardware": "NVIDIA H200", "torch": "2", "threads": 1, "commit": "abc"}
    rest = {"case": target.case, "unit": "us", "p20": 0.0, "p80": 0.0, "bytes": None}
    return Measured(
        target.bench, {name: Row(**common, **rest, candidate=name, median=m) for name, m in medians.items()}
    )


@pytest.mark.parametrize("target", [t for t in TARGETS if t.on_gpu and t.bench in WITH_A_NETWORK], ids=lambda t: t.what)
def test_on_a_gpu_the_graph_is_judged_and_not_the_eager_run_that_waits_for_its_launches(target):
    seconds = {"plain": 1e7, FASTEST: 2e7}
    assert report.verdict(target, {target.bench: [rows_of(target, **seconds, **{GRAPH: 1e6})]}) == "met"
    assert report.find(target, {target.bench: [rows_of(target, **seconds)]}) is None


def test_what_the_targets_of_a_gpu_judge_says_so():
    told = [t.what for t in TARGETS if t.on_gpu and t.bench in WITH_A_NETWORK]
    assert all("train.graph=true" in what or what.startswith("the same epoch") for what in told) and len(told) == 6
