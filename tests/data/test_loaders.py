"""What all loaders promise: the same batches, whole epochs, resuming anywhere, nothing left behind."""

import gc
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch

from ltat import memory
from ltat.data import (
    Augment,
    BalancedPlan,
    FixedPlan,
    ImageStore,
    ResidentLoader,
    ShufflePlan,
    Split,
    TorchLoader,
    make_loader,
)
from ltat.data.loaders import choice, dataloader
from ltat.data.workers import cores, resolve_workers
from ltat.errors import LtatError

COUNTS = [40, 20, 9, 4]
LABELS = np.repeat(np.arange(4), COUNTS)
N = len(LABELS)
PIXELS = np.random.default_rng(1).integers(0, 256, (N, 6, 5, 3), dtype=np.uint8)
SPLIT = Split(PIXELS, LABELS, 4, np.arange(N))
BALANCED = BalancedPlan(LABELS, 4, "ir/2", db_seed=0, seed=5)


class Stored(ImageStore):
    """Reads from an array; position ``broken`` cannot be read."""

    def __init__(self, pixels, broken=None):
        self.pixels, self.broken, self.shape = pixels, broken, pixels.shape

    def read(self, positions):
        if self.broken is not None and self.broken in positions:
            raise LtatError(f"image {self.broken}.png cannot be read; restore it")
        return self.pixels[positions]

    def subset(self, positions):
        return Stored(self.pixels[positions], self.broken)


class GrowingPlan:
    """An epoch longer than the one before."""

    def epoch(self, epoch):
        return np.arange(10 + 7 * epoch) % N

    def size(self, epoch):
        return 10 + 7 * epoch


def stored(broken=None):
    return Split(Stored(PIXELS, broken), LABELS, 4, np.arange(N))


def batches_equal(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.images, b.images) and a.images.stride() == b.images.stride()
        assert torch.equal(a.labels, b.labels) and torch.equal(a.indices, b.indices)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("augment", [None, Augment(2, True), Augment(1, True, "reflect")], ids=["none", "zero", "refl"])
def test_torch_gives_the_batches_of_resident_for_any_number_of_workers(workers, augment):
    if workers > cores():
        pytest.skip(f"this machine has {cores()} core(s)")
    settings = {"batch_size": 7, "augment": augment, "seed": 3}
    resident = ResidentLoader(SPLIT, BALANCED, **settings)
    other = TorchLoader(stored(), BALANCED, workers=workers, **settings)
    batches_equal(resident.epoch(2), other.epoch(2))
    batches_equal(resident.epoch(1, start=35), other.epoch(1, start=35))


def test_resident_reads_a_store_in_parts(monkeypatch):
    monkeypatch.setattr("ltat.data.split._PLACED_AT_ONCE", 10)
    from_store, from_memory = (ResidentLoader(split, BALANCED, batch_size=16) for split in (stored(), SPLIT))
    batches_equal(from_store.epoch(0), from_memory.epoch(0))


def test_both_stages_of_a_run_share_what_was_read_once():
    split = stored()
    assert split.images_on(torch.device("cpu")) is split.images_on(torch.device("cpu"))


@pytest.mark.parametrize("n", range(8, 13))
def test_drop_last_leaves_out_exactly_what_fills_no_batch(n):
    loader = ResidentLoader(SPLIT, FixedPlan(np.arange(n)), batch_size=4, drop_last=True)
    assert loader.steps(0) == n // 4
    for start in (0, 5, n - 1, n):
        assert [len(batch.labels) for batch in loader.epoch(0, start)] == [4] * ((n - start) // 4)


def test_epochs_of_different_lengths_are_served_whole():
    loader = ResidentLoader(SPLIT, GrowingPlan(), batch_size=8)
    for epoch in (0, 3, 1):
        batches = list(loader.epoch(epoch))
        assert len(batches) == loader.steps(epoch)
        assert torch.cat([b.indices for b in batches]).tolist() == GrowingPlan().epoch(epoch).tolist()


def test_an_epoch_too_short_for_a_batch_is_refused_when_it_comes():
    class Shrinking(GrowingPlan):
        def epoch(self, epoch):
            return np.arange(self.size(epoch))

        def size(self, epoch):
            return 20 // epoch

    loader = ResidentLoader(SPLIT, Shrinking(), batch_size=8, drop_last=True)
    assert loader.steps(2) == len(list(loader.epoch(2))) == 1
    with pytest.raises(LtatError, match="batch size 8 is larger than the 6 images of an epoch"):
        loader.epoch(3)


@pytest.mark.parametrize("kind", ["resident", "torch"])
def test_leaving_an_epoch_early_leaves_nothing_behind(kind):
    loader = make_loader(stored(), BALANCED, kind=kind, batch_size=4)
    threads, torch_threads = threading.active_count(), torch.get_num_threads()
    for _ in range(3):
        epoch = loader.epoch(0)
        next(epoch)
        epoch.close()
    for _ in loader.epoch(0):
        break
    gc.collect()
    assert comes_true(lambda: not multiprocessing.active_children())
    assert comes_true(lambda: threading.active_count() == threads)
    assert torch.get_num_threads() == torch_threads


def comes_true(condition):
    """Within ten seconds: a queue's own thread may need a moment to end."""
    until = time.monotonic() + 10
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_one_sentence(workers):
    loader = TorchLoader(stored(broken=70), FixedPlan(np.arange(N)), batch_size=8, workers=workers)
    with pytest.raises(LtatError, match=r"^image 70.png cannot be read; restore it$"):
        list(loader.epoch(0))


class Deadly(Stored):
    def read(self, positions):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_sentence_and_no_hang():
    loader = TorchLoader(Split(Deadly(PIXELS), LABELS, 4, np.arange(N)), BALANCED, batch_size=8, workers=1)
    with pytest.raises(LtatError, match="a loader worker died"):
        next(loader.epoch(0))


class Stuck(Stored):
    def read(self, positions):
        time.sleep(600)


def test_a_disk_that_does_not_answer_is_one_sentence_and_no_hang(monkeypatch):
    monkeypatch.setattr(dataloader, "STALLED_AFTER", 0.5)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # how long a worker may take to end
    loader = TorchLoader(Split(Stuck(PIXELS), LABELS, 4, np.arange(N)), BALANCED, batch_size=8, workers=1)
    with pytest.raises(LtatError, match="gave no batch for 0 s; check the disk"):
        next(loader.epoch(0))
    assert comes_true(lambda: not multiprocessing.active_children())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_in_a_policy_is_not_reported_as_a_lack_of_memory(workers):
    def faulty(image):
        raise RuntimeError("this policy wants floats")

    settings = {"batch_size": 8, "augment": Augment(0, False, policy=faulty), "workers": workers}
    with pytest.raises(RuntimeError, match="this policy wants floats"):
        next(TorchLoader(SPLIT, BALANCED, **settings).epoch(0))


def test_a_machine_of_one_core_has_one_worker(monkeypatch):
    monkeypatch.setattr("ltat.data.workers.cores", lambda: 1)
    assert resolve_workers(None, least=1) == 1


def test_images_in_memory_are_not_sent_between_processes_unless_there_is_work_for_them(monkeypatch):
    def workers(split, policy=None):
        return TorchLoader(split, BALANCED, batch_size=8, augment=Augment(0, False, policy=policy)).workers

    assert workers(SPLIT) == 0
    assert workers(stored()) == workers(SPLIT, policy=lambda image: image) == cores() - 1
    monkeypatch.setattr("ltat.data.loaders.dataloader.cores", lambda: 1)
    assert workers(stored()) == 0  # nothing is won by a process that shares the one core


# --- which loader


def test_auto_keeps_in_memory_what_is_there_and_what_fits(monkeypatch):
    plan = ShufflePlan(N, 0)
    assert make_loader(SPLIT, plan, batch_size=4).why == "resident: the images are in memory"
    assert make_loader(stored(), plan, batch_size=4).why.startswith("resident: ")
    monkeypatch.setattr(choice, "free_memory", lambda device: 4 * PIXELS.nbytes)
    assert isinstance(make_loader(stored(), plan, batch_size=4, share=0.25), ResidentLoader)
    refused = make_loader(stored(), plan, batch_size=4, share=0.24)
    assert isinstance(refused, TorchLoader) and "24%" in refused.why and "no .beton file" in refused.why


def test_an_array_too_large_for_a_gpu_stays_in_memory(monkeypatch):
    monkeypatch.setattr(choice, "free_memory", lambda device: 4 * PIXELS.nbytes)
    assert choice.choose_loader(SPLIT, torch.device("cuda"), 0.25)[0] == "resident"
    assert choice.choose_loader(SPLIT, torch.device("cuda"), 0.24)[0] == "torch"


def test_a_containers_limit_is_heeded(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 250\ninactive_file 600\nactive_file 50\n")
    assert memory._container(tmp_path) == 700, "files that were read can be forgotten again"
    (tmp_path / "memory.current").write_text("1700\n")
    assert memory._container(tmp_path) == 0
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._container(tmp_path) == memory._container(tmp_path / "none") == float("inf")
    assert 0 < choice.free_memory(torch.device("cpu")) < 1 << 50
    assert choice.free_memory(torch.device("cpu")) <= memory._available(tmp_path / "none") < 1 << 50
    monkeypatch.setattr(memory, "_container", lambda group: 123)
    assert choice.free_memory(torch.device("cpu")) == 123


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"kind": "dali"}, "unknown loader 'dali'; choose one of auto, resident, ffcv, torch"),
        ({"kind": "torch", "workers": 4096}, "4096 workers do not suit"),
        ({"batch_size": N + 1, "drop_last": True}, f"larger than the {N} images"),
    ],
)
def test_wrong_use_is_refused_before_the_first_epoch(settings, fragment):
    with pytest.raises(LtatError, match=fragment):
        make_loader(SPLIT, ShufflePlan(N, 0), **{"batch_size": 4, **settings})


class CountedPlan(ShufflePlan):
    """Notes which epochs it makes."""

    made: list[int]

    def epoch(self, epoch):
        self.made.append(epoch)
        return super().epoch(epoch)


def test_an_epochs_plan_is_made_once_for_its_counts_and_its_order():
    plan = CountedPlan(N, 0)
    object.__setattr__(plan, "made", [])
    loader = ResidentLoader(SPLIT, plan, batch_size=16)
    for epoch in (1, 2, 1):
        counts = loader.class_counts(epoch)
        served = torch.cat([batch.labels for batch in loader.epoch(epoch)])
        assert counts.tolist() == torch.bincount(served, minlength=4).tolist() == COUNTS
        batches_equal(loader.epoch(epoch), ResidentLoader(SPLIT, ShufflePlan(N, 0), batch_size=16).epoch(epoch))
    assert plan.made == [1, 2, 1]
