import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ltat.data import Augment, BalancedPlan, FixedPlan, ResidentLoader, ShufflePlan, Split, load_dataset
from ltat.data.beton import BetonImages, write_beton
from ltat.data.loaders.ffcv import FfcvLoader
from ltat.data.policies import randaugment
from ltat.data.workers import cores
from ltat.errors import LtatError
from tests.data.betons import N, Opened, noise, opened, sign, stored
from tests.marks import needs_ffcv

pytestmark = needs_ffcv

SHARED = Path(__file__).parents[3] / "shared/data"
MANY = min(2, cores())
SETTINGS = {"batch_size": 16, "seed": 3}
PADDINGS = {"none": None, "zero": Augment(4, True), "reflect": Augment(3, True, "reflect")}


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("splits")
    digits = load_dataset("digits", imbalance_ratio=20).train
    return {
        "colour": stored(noise(), folder / "colour.beton"),
        "jpeg": stored(noise(), folder / "jpeg.beton", mode="jpeg"),
        "digits": stored_digits(digits, folder / "digits.beton"),
    }


def stored_digits(digits: Split, path: Path) -> Split:
    write_beton(digits, path, tuple("0123456789"), name="digits")
    return opened(path)


def balanced(split: Split, **settings) -> BalancedPlan:
    """Repeats, and another draw every epoch."""
    return BalancedPlan(split.labels, split.num_classes, "ir/2", 0, 1, resample="per_epoch", **settings)


@pytest.fixture(scope="module")
def loader(splits):
    """Every loader takes a second to compile, so the tests share them."""
    made = {}

    def of(kind: str = "colour", padding: str = "zero", workers: int = 1) -> FfcvLoader:
        if (kind, padding, workers) not in made:
            plan = balanced(splits[kind])
            more = {"augment": PADDINGS[padding], "workers": workers}
            made[kind, padding, workers] = FfcvLoader(splits[kind], plan, **SETTINGS, **more)
        return made[kind, padding, workers]

    return of


def in_memory(split: Split) -> Split:
    return Split(split.images[:], split.labels, split.num_classes, split.indices)


def assert_same(found, expected) -> None:
    """All batches of two epochs, compared after the last one: no batch may lie in a buffer that is used again."""
    for one, other in zip(list(found), list(expected), strict=True):
        assert one.images.equal(other.images)
        assert one.labels.equal(other.labels) and one.indices.equal(other.indices)
        assert one.images.is_contiguous(memory_format=torch.channels_last)
        assert one.images.dtype == torch.float32 and one.labels.dtype == torch.int64


@pytest.mark.parametrize(
    ("kind", "padding", "workers"),
    [
        *[(kind, padding, MANY) for kind in ("colour", "jpeg", "digits") for padding in ("zero", "reflect")],
        ("colour", "zero", 1),
        ("jpeg", "reflect", 1),
        ("digits", "none", 1),
    ],
)
def test_batches_are_those_of_the_resident_loader(loader, splits, kind, padding, workers):
    split = splits[kind]
    resident = ResidentLoader(in_memory(split), balanced(split), augment=PADDINGS[padding], **SETTINGS)
    streamed = loader(kind, padding, workers)
    for epoch, start in ((0, 0), (5, 0), (1, 23)):
        assert_same(streamed.epoch(epoch, start), resident.epoch(epoch, start))
    assert streamed.steps(0) == resident.steps(0)


def test_mirror_and_shift_are_those_of_the_textbook(loader, splits):
    """Not by way of another loader: pad, cut, mirror."""
    streamed, images = loader(), splits["colour"].images[:]
    positions = streamed.plan.epoch(2)
    draws = streamed.augment.draw(len(positions), 3, 2)
    found = torch.cat([batch.images for batch in streamed.epoch(2)])
    assert draws.mirrored.any() and not draws.mirrored.all() and (draws.shift.abs() == 4).any()
    for k, position in enumerate(positions):
        padded = np.pad(images[position], ((4, 4), (4, 4), (0, 0)))
        top, left = (draws.shift[k] + 4).tolist()
        cut = padded[top : top + 7, left : left + 6]
        cut = cut[:, ::-1] if draws.mirrored[k] else cut
        np.testing.assert_array_equal(found[k], cut.transpose(2, 0, 1).astype(np.float32) / np.float32(255))


def test_real_cifar_is_the_same_from_ffcv(tmp_path):
    if not SHARED.exists():
        pytest.skip("the real long-tailed packs are not here")
    command = [sys.executable, str(SHARED / "unpack.py"), "cifar10", "--imbalance-ratio", "50", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    train = load_dataset("npz", tmp_path).train
    write_beton(train, tmp_path / "train.beton", tuple("abcdefghij"), name="cifar10")
    split, settings = opened(tmp_path / "train.beton"), {"batch_size": 128, "augment": Augment(4, True), "seed": 7}
    plan = balanced(split)
    assert np.bincount(train.labels[plan.epoch(3)]).tolist() == [2500] * 10
    streamed = FfcvLoader(split, plan, workers=MANY, **settings)
    assert_same(streamed.epoch(3), ResidentLoader(train, plan, **settings).epoch(3))


def test_a_policy_and_cutout_are_those_of_the_resident_loader(splits):
    split = splits["colour"].subset(np.arange(20))
    augment = Augment(2, True, policy=randaugment(), cutout=3)
    streamed = FfcvLoader(split, ShufflePlan(20, 0), augment=augment, workers=1, **SETTINGS)
    resident = ResidentLoader(in_memory(split), ShufflePlan(20, 0), augment=augment, **SETTINGS)
    assert_same(streamed.epoch(0), resident.epoch(0))


def test_a_subset_points_at_its_own_images(splits):
    chosen = np.array([40, 3, 3, 49, 0])
    part = splits["colour"].subset(chosen)
    batch = next(FfcvLoader(part, FixedPlan(np.array([1, 3, 0])), batch_size=3, workers=1).epoch(0))
    expected = splits["colour"].images[chosen[[1, 3, 0]]].transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(batch.images, expected)
    np.testing.assert_array_equal(batch.labels, part.labels[[1, 3, 0]])


class Growing:
    """Epochs of different lengths."""

    def epoch(self, epoch):
        return np.arange(self.size(epoch)) % N

    def size(self, epoch):
        return 5 + 40 * epoch


def test_epochs_may_differ_in_length(splits):
    streamed = FfcvLoader(splits["colour"], Growing(), workers=1, **SETTINGS)
    for epoch in (0, 2, 1, 4, 0):
        indices = torch.cat([batch.indices for batch in streamed.epoch(epoch)])
        np.testing.assert_array_equal(indices, Growing().epoch(epoch))
    assert list(streamed.epoch(0, start=5)) == []


def test_numbas_types_stay_as_they_were(splits):
    """FFCV makes the type of uint8 arrays read-only: functions compiled for it are then looked up in vain."""
    from numba import types

    shared = types.uint8[::1]
    FfcvLoader(splits["colour"], ShufflePlan(N, 0), **SETTINGS)
    assert shared.mutable


def test_two_loaders_may_run_at_once(loader, splits):
    one, other = loader("colour", "zero", 1), loader("digits", "zero", MANY)
    pairs = list(zip(one.epoch(0), other.epoch(0), strict=False))
    again = zip(list(one.epoch(0)), list(other.epoch(0)), strict=False)
    assert len(pairs) > 2
    for (a, b), (c, d) in zip(pairs, again, strict=True):
        assert a.images.equal(c.images) and b.images.equal(d.images)


def test_one_loader_may_serve_two_epochs_at_once(loader):
    one = loader()
    mixed = list(zip(one.epoch(0), one.epoch(1), strict=True))
    assert_same([a for a, _ in mixed], one.epoch(0))
    assert_same([b for _, b in mixed], one.epoch(1))


# Nothing is left, nothing hangs


def streaming_threads() -> int:
    return sum("_Epoch" in type(thread).__name__ for thread in threading.enumerate())


@pytest.mark.parametrize("taken", [0, 1, 9])
def test_leaving_an_epoch_early_leaves_no_thread_and_no_buffers(loader, taken):
    from ltat.data.beton import stream

    for _ in range(3):
        epoch = loader("digits").epoch(0)
        for _ in range(taken):
            next(epoch)
        epoch.close()
        assert streaming_threads() == 0
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) is stream._Epoch]


def test_an_exception_in_the_training_loop_leaves_no_thread(loader):
    def train():
        for batch in loader().epoch(0):
            raise ValueError(len(batch.labels))

    with pytest.raises(ValueError, match="16"):
        train()
    gc.collect()
    assert streaming_threads() == 0


@pytest.fixture
def broken(splits):
    """A loader whose operation is another function."""

    def of(act) -> FfcvLoader:
        streamed = FfcvLoader(splits["colour"], FixedPlan(np.arange(N)), workers=1, **SETTINGS)
        (_, nodes), *_ = streamed._stream.code[0]
        streamed._stream.code = ([(act, nodes)], streamed._stream.code[1])
        return streamed

    return of


def test_an_operation_that_fails_does_not_hang(broken):
    def boom(**arguments):
        raise ZeroDivisionError("boom")

    begun = time.monotonic()
    with pytest.raises(RuntimeError, match=r"colour.beton failed: ZeroDivisionError\('boom'\)"):
        next(broken(boom).epoch(0))
    assert time.monotonic() - begun < 10
    assert streaming_threads() == 0


def test_an_operation_that_stands_still_does_not_hang(broken, monkeypatch):
    from ltat.data.beton import stream

    monkeypatch.setattr(stream, "STALLED_AFTER", 0.3)
    monkeypatch.setattr(stream, "_LISTEN", 0.05)
    monkeypatch.setattr(stream, "_LAST_WAIT", 0.1)
    release = threading.Event()

    def still(**arguments):
        release.wait(30)
        raise ValueError

    with pytest.raises(LtatError, match=r"FFCV gave no batch of .*colour.beton for 0 s; check the disk"):
        next(broken(still).epoch(0))
    release.set()


def test_a_jpeg_that_cannot_be_decoded_is_reported_by_its_number(splits, tmp_path):
    stored(noise(), tmp_path / "jpeg.beton", mode="jpeg")
    parts = Opened(tmp_path / "jpeg.beton")
    start = int(parts.table["pointer"][7])
    parts.content[start : start + 20] = 0
    sign(tmp_path / "jpeg.beton")
    split = opened(tmp_path / "jpeg.beton").subset(np.arange(5, N))
    with pytest.raises(LtatError, match="image 7 is not a jpeg that can be decoded"):
        list(FfcvLoader(split, ShufflePlan(len(split), 0), workers=1, **SETTINGS).epoch(0))


def test_a_file_changed_since_it_was_checked_is_refused(tmp_path):
    split = stored(noise(), tmp_path / "x.beton")
    stored(noise(seed=1, n=N - 10), tmp_path / "x.beton")
    with pytest.raises(LtatError, match="was changed after it was checked"):
        FfcvLoader(split, ShufflePlan(N, 0), **SETTINGS)


@pytest.mark.parametrize(("workers", "fragment"), [(0, "0 workers"), (cores() + 1, f"{cores() + 1} workers")])
def test_more_workers_than_cores_are_refused(splits, workers, fragment):
    with pytest.raises(LtatError, match=fragment):
        FfcvLoader(splits["colour"], ShufflePlan(N, 0), workers=workers, **SETTINGS)


def test_a_core_is_left_to_the_training(splits):
    streamed = FfcvLoader(splits["colour"], ShufflePlan(N, 0), **SETTINGS)
    assert streamed.workers == max(1, cores() - 1)


def test_a_plan_that_points_outside_is_refused(splits):
    streamed = FfcvLoader(splits["colour"], FixedPlan(np.array([0, N])), workers=1, batch_size=2)
    with pytest.raises(LtatError, match=f"index {N} is outside the set of {N} images"):
        list(streamed.epoch(0))


def test_images_elsewhere_are_refused_with_the_way_out():
    with pytest.raises(LtatError, match=r"lie in none; write them with ltat data prepare --format beton"):
        FfcvLoader(noise(), ShufflePlan(N, 0), **SETTINGS)


def test_without_ffcv_the_script_is_named(splits, monkeypatch):
    monkeypatch.setitem(sys.modules, "ffcv.memory_managers", None)
    with pytest.raises(LtatError, match=r"FFCV is missing or broken .*; install it with python -m ltat.install_ffcv"):
        FfcvLoader(splits["colour"], ShufflePlan(N, 0), **SETTINGS)


def test_torch_keeps_its_threads_and_stderr_its_silence(splits):
    """In a process of its own: FFCV sets torch's threads on import, for each loader and in each thread."""
    images = splits["colour"].images
    assert isinstance(images, BetonImages)
    code = f"""
import gc, torch
torch.set_num_threads(3)
import numpy as np
from pathlib import Path
from ltat.data import Augment, ShufflePlan, Split
from ltat.data.beton import BetonImages, read_beton
from ltat.data.loaders.ffcv import FfcvLoader
beton = read_beton(Path({str(images.path)!r}))
split = Split(BetonImages.of(beton), beton.labels, 3, beton.indices)
before = np.random.get_state()[2], torch.initial_seed()
for workers in (1, {MANY}):
    loader = FfcvLoader(split, ShufflePlan(len(split), 0), batch_size=8, augment=Augment(2, True), workers=workers)
    assert torch.get_num_threads() == 3, "constructed"
    for batch in loader.epoch(0):
        assert torch.get_num_threads() == 3, "inside"
    next(loader.epoch(1))
    gc.collect()
assert torch.get_num_threads() == 3, "after"
assert before == (np.random.get_state()[2], torch.initial_seed())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
