import contextlib
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ltat.data import ImageStore, ResidentLoader, ShufflePlan, Split, TorchLoader, load_dataset
from ltat.data.beton import BetonImages, load_beton, read_beton, write_beton, writing
from ltat.data.beton.format import look_through
from ltat.data.beton.sidecar import read_sidecar, sidecar_path
from ltat.data.beton.writer_process import Message
from ltat.data.workers import cores
from ltat.errors import LtatError
from tests.data.betons import NAMES, N, Opened, noise, opened, sign, stored
from tests.marks import needs_ffcv

pytestmark = needs_ffcv

KINDS = {"colour": (3, "raw"), "grey": (1, "raw"), "jpeg": (3, "jpeg")}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    for kind, (channels, mode) in KINDS.items():
        stored(noise(channels=channels), folder / f"{kind}.beton", mode=mode)
    return folder


@pytest.fixture
def copy(written, tmp_path):
    """Copies a pair of files, so that a test may damage them."""

    def of(kind: str) -> Path:
        for path in (written / f"{kind}.beton", sidecar_path(written / f"{kind}.beton")):
            shutil.copy(path, tmp_path)
        return tmp_path / f"{kind}.beton"

    return of


def error_of(path: Path) -> str:
    """The one sentence with which a file is refused."""
    with pytest.raises(LtatError) as error:
        read_beton(path)
    sentence = str(error.value)
    assert str(path) in sentence and "\n" not in sentence and "; write it again" in sentence
    return sentence


# What is written is what is read


@pytest.mark.parametrize("kind", ["colour", "grey"])
def test_raw_images_come_back_with_labels_indices_and_names(written, kind):
    original, back = noise(channels=KINDS[kind][0]), opened(written / f"{kind}.beton")
    np.testing.assert_array_equal(back.images[:], original.images)
    np.testing.assert_array_equal(back.labels, original.labels)
    np.testing.assert_array_equal(back.indices, original.indices)
    assert back.num_classes == 3
    sidecar = read_beton(written / f"{kind}.beton").sidecar
    assert (sidecar.class_names, sidecar.counts, sidecar.dataset) == (NAMES, (30, 15, 5), "noise")


def test_a_large_picture_needs_a_larger_page(tmp_path):
    large = noise(900, 1000, n=4)
    np.testing.assert_array_equal(stored(large, tmp_path / "x.beton").images[:], large.images)


def test_jpeg_keeps_smooth_pictures_nearly(tmp_path):
    ramp = np.linspace(0, 255, 32 * 32).reshape(32, 32, 1).repeat(3, 2).astype(np.uint8)
    smooth = Split(np.stack([ramp, ramp.transpose(1, 0, 2)]), np.zeros(2, np.int64), 3, np.arange(2))
    back = stored(smooth, tmp_path / "x.beton", mode="jpeg").images[:]
    assert 0 < np.abs(back.astype(int) - smooth.images).max() < 12
    assert (back[0] != back[1]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_ffcvs_own_pipeline_sees_the_same_pixels(written, kind):
    from ffcv.loader import Loader

    path = written / f"{kind}.beton"
    loader = Loader(str(path), N, num_workers=1, os_cache=True, seed=0)
    images, labels, indices = next(iter(loader))
    split = opened(path)
    np.testing.assert_array_equal(images.numpy(), split.images[:])
    np.testing.assert_array_equal(labels[:, 0].numpy(), split.labels)
    np.testing.assert_array_equal(indices[:, 0].numpy(), split.indices)


def test_one_worker_writes_the_same_bytes_again(written, tmp_path):
    stored(noise(), tmp_path / "colour.beton")
    assert (tmp_path / "colour.beton").read_bytes() == (written / "colour.beton").read_bytes()


@pytest.mark.skipif(cores() < 2, reason="needs two cores")
def test_two_workers_write_the_same_split(tmp_path):
    original, seen = noise(n=700), []
    back = stored(original, tmp_path / "x.beton", workers=2, on_progress=lambda *state: seen.append(state))
    np.testing.assert_array_equal(back.images[:], original.images)
    np.testing.assert_array_equal(back.labels, original.labels)
    assert seen[-1] == (700, 700) and seen == sorted(seen)


def test_a_store_is_read_image_by_image(written, tmp_path):
    source = opened(written / "grey.beton")
    back = stored(source, tmp_path / "x.beton")
    np.testing.assert_array_equal(back.images[:], source.images[:])


def test_a_file_that_is_there_is_replaced(tmp_path):
    stored(noise(seed=1), tmp_path / "x.beton")
    back = stored(noise(seed=2), tmp_path / "x.beton")
    np.testing.assert_array_equal(back.images[:], noise(seed=2).images)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.beton", "x.beton.json"]


# Images on demand


@pytest.mark.parametrize("kind", KINDS)
def test_any_positions_are_read_with_repeats(written, kind):
    images = opened(written / f"{kind}.beton").images
    everything, positions = images[:], np.array([7, 0, 7, N - 1])
    np.testing.assert_array_equal(images[positions], everything[positions])
    np.testing.assert_array_equal(images.subset(positions)[np.array([3, 1])], everything[positions[[3, 1]]])
    np.testing.assert_array_equal(images[3:9:2], everything[3:9:2])
    assert images[np.array([], int)].shape == (0, 7, 6, 3 if kind != "grey" else 1)


def test_a_store_travels_without_its_open_file(written):
    images = opened(written / "colour.beton").images
    expected = images[:]
    sent = pickle.dumps(images)
    assert len(sent) < 10_000
    np.testing.assert_array_equal(pickle.loads(sent)[:], expected)


def test_other_loaders_read_it_too(written):
    split = opened(written / "colour.beton")
    settings = {"batch_size": 16, "seed": 1}
    batches = [
        kind(split, ShufflePlan(N, 0), **settings, **more).epoch(1)
        for kind, more in ((ResidentLoader, {}), (TorchLoader, {"workers": 0}))
    ]
    for one, other in zip(*batches, strict=True):
        assert one.images.equal(other.images) and one.indices.equal(other.indices)


def test_a_file_replaced_after_the_check_is_refused(copy):
    path = copy("colour")
    images = opened(path).images
    os.utime(path, ns=(1, 1))
    with pytest.raises(LtatError, match="was changed after it was checked; load the data again"):
        images[:3]
    path.unlink()
    with pytest.raises(LtatError, match="cannot be read any more"):
        images[:3]


def test_raw_files_are_checked_and_read_without_ffcv(written):
    code = f"""
import sys
sys.modules["ffcv"] = None
from pathlib import Path
from ltat.data.beton import BetonImages, read_beton
print(BetonImages.of(read_beton(Path({str(written / "colour.beton")!r})))[:].sum())
try:
    BetonImages.of(read_beton(Path({str(written / "jpeg.beton")!r})))[:1]
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    total, sentence = done.stdout.splitlines()
    assert int(total) == noise().images.sum()
    assert "FFCV is missing" in sentence and "python -m ltat.install_ffcv" in sentence


# Bad files


def altered(path: Path, act) -> None:
    act(Opened(path))
    sign(path)


def put(array: np.ndarray, index, value) -> None:
    array[index] = value


DAMAGES = {
    "label too large": (lambda f: put(f.rows["label"], 4, 3), "label 3 at position 4 is outside 0..2"),
    "label negative": (lambda f: put(f.rows["label"], 4, -1), "label -1 at position 4"),
    "label swapped": (lambda f: put(f.rows["label"], 0, 2), "not those its sidecar counts"),
    "other version": (lambda f: put(f.header["version"], 0, 3), "version 3"),
    "other number of fields": (lambda f: put(f.header["fields"], 0, 2), "2 fields"),
    "more samples": (lambda f: put(f.header["samples"], 0, N + 1), "51 images and its sidecar counts 50"),
    "wild samples": (lambda f: put(f.header["samples"], 0, 2**63), "images and its sidecar counts 50"),
    "odd page": (lambda f: put(f.header["page_size"], 0, 3 << 20), "page size of 3145728"),
    "no page": (lambda f: put(f.header["page_size"], 0, 0), "page size of 0"),
    "table elsewhere": (lambda f: put(f.header["table"], 0, 8), "do not fill the file"),
    "table beyond the end": (lambda f: put(f.header["table"], 0, 2**64 - 1), "do not fill the file"),
    "image of another kind": (lambda f: put(f.fields["type"], 0, 3), "its fields are not"),
    "field of another name": (lambda f: put(f.fields["name"], (1, 0), ord("x")), "its fields are not"),
    "pointer beyond the pages": (lambda f: put(f.table["pointer"], 7, 2**63), "image 7 lie outside"),
    "pointer before the pages": (lambda f: put(f.table["pointer"], 7, 5), "image 7 lie outside"),
    "size beyond the pages": (lambda f: put(f.table["size"], 7, 2**64 - 8), "image 7 lie outside"),
    "other size": (lambda f: put(f.table["size"], 7, 5), "image 7 has the size 5"),
    "sample twice": (lambda f: put(f.table["sample"], 7, 8), "every image once"),
}
COLOUR_DAMAGES = {
    "address elsewhere": (lambda f: put(f.rows["image"]["pointer"], 7, 9), "image 7 has the address 9"),
    "other mode": (lambda f: put(f.rows["image"]["mode"], 7, 0), "image 7 has the mode 0"),
    "other height": (lambda f: put(f.rows["image"]["height"], 7, 8), "image 7 has the height 8"),
    "other width": (lambda f: put(f.rows["image"]["width"], 7, 60000), "image 7 has the width 60000"),
}
GREY_DAMAGES = {
    "address elsewhere": (lambda f: put(f.rows["image"], 7, 9), "image 7 has the address 9"),
    "other shape": (lambda f: put(f.fields["arguments"], (0, 0), 9), "not uint8 arrays of shape"),
}
CASES = [
    *(("colour", *case) for case in (DAMAGES | COLOUR_DAMAGES).values()),
    *(("grey", *case) for case in GREY_DAMAGES.values()),
]


@pytest.mark.parametrize(("kind", "damage", "fragment"), CASES)
def test_what_the_file_says_wrongly_is_reported(copy, kind, damage, fragment):
    path = copy(kind)
    altered(path, damage)
    assert fragment in error_of(path)


def test_no_random_damage_gets_through_or_raises_anything_else(copy):
    path, rng = copy("colour"), np.random.default_rng(0)
    original = path.read_bytes()
    parts = Opened(path)
    table = int(parts.header["table"][0])
    ends = len(original) - parts.rows.nbytes - parts.fields.nbytes - parts.header.nbytes
    refused = 0
    for _ in range(300):
        head = rng.random() < 0.7
        at = rng.integers(0, len(original) - ends) if head else rng.integers(table, len(original))
        parts.content[at] ^= 1 << rng.integers(8)
        try:
            beton = look_through(path, read_sidecar(path))
        except LtatError:
            refused += 1
        else:
            assert (beton.pointers >= 1 << 21).all() and (beton.pointers + beton.sizes <= table).all()
            assert beton.labels.min() >= 0 and beton.labels.max() <= 2
        parts.content[at] = original[at]
    assert refused > 100


def test_a_flipped_bit_in_an_image_is_noticed(copy):
    path = copy("colour")
    Opened(path).content[(1 << 21) + 100] ^= 4
    assert "SHA-256" in error_of(path)


def test_a_truncated_file_is_noticed(copy):
    path = copy("colour")
    os.truncate(path, path.stat().st_size - 1)
    assert "bytes where" in error_of(path)
    sign(path)
    assert "do not fill the file" in error_of(path)
    os.truncate(path, 10)
    sign(path)
    assert "too few for a header" in error_of(path)


def test_a_foreign_file_is_noticed(copy, tmp_path):
    path = copy("colour")
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    sign(path)
    assert "not written by ltat" in error_of(path)
    (tmp_path / "none.beton").write_bytes(b"x")
    assert "no none.beton.json beside it" in error_of(tmp_path / "none.beton")


def test_a_file_of_other_fields_is_noticed(copy):
    from ffcv.fields import IntField
    from ffcv.writer import DatasetWriter

    path = copy("colour")
    labels = [(label,) for label in noise(n=500).labels]
    DatasetWriter(str(path), {"label": IntField()}, num_workers=1).from_indexed_dataset(labels)
    sign(path)
    assert "1 fields, not ours" in error_of(path)


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"sha256": "0" * 64}, "its SHA-256 is"),
        ({"sha256": "yes"}, "sha256: String should match"),
        ({"size": -1}, "size: "),
        ({"format": 2}, "format: "),
        ({"surprise": 1}, "surprise: "),
        ({"counts": [30, 20]}, "2 counts for 3 class names"),
        ({"counts": [0, 0, 0]}, "no class has an image"),
        ({"shape": [7, 6]}, "shape"),
        ({"shape": [7, 6, 1]}, "its fields are not"),
        ({"shape": [6, 7, 3]}, "the height 7"),
        ({"mode": "png"}, "mode: "),
        ({"mode": "jpeg"}, "the mode 1"),
        ({"class_names": ["ant", "bee", 3]}, "class_names.2: "),
    ],
)
def test_a_sidecar_that_does_not_fit_is_reported(copy, changes, fragment):
    path = copy("colour")
    sign(path, **changes)
    with pytest.raises(LtatError) as error:
        read_beton(path)
    assert fragment in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\xff", '{"format": 1}'])
def test_a_sidecar_that_is_none_is_reported(copy, text):
    path = copy("colour")
    sidecar_path(path).write_text(text)
    with pytest.raises(LtatError, match=r"is not the sidecar of a .beton file .*; write it again"):
        read_beton(path)


def test_a_jpeg_that_cannot_be_decoded_is_reported_by_its_number(copy):
    path = copy("jpeg")
    parts = Opened(path)
    start = int(parts.table["pointer"][7])
    parts.content[start : start + int(parts.table["size"][7])] = 0
    sign(path)
    with pytest.raises(LtatError, match="image 7 is not a jpeg that can be decoded"):
        opened(path).images[:]


# A folder as a dataset


def test_a_folder_is_a_dataset(tmp_path):
    digits = load_dataset("digits", imbalance_ratio=20)
    for name, split in (("train", digits.train), ("test", digits.test)):
        write_beton(split, tmp_path / f"{name}.beton", digits.class_names, name="digits")
    data = load_dataset("beton", tmp_path)
    assert (data.name, data.class_names, data.image_shape) == ("digits", digits.class_names, (8, 8, 1))
    for back, split in ((data.train, digits.train), (data.test, digits.test)):
        np.testing.assert_array_equal(back.images[:], split.images)
        np.testing.assert_array_equal(back.labels, split.labels)
        np.testing.assert_array_equal(back.indices, split.indices)
    assert len(load_dataset("beton", tmp_path, imbalance_ratio=40).train) < len(data.train)


def test_an_empty_class_is_refused_for_training(tmp_path):
    some = noise().subset(np.arange(40))  # none of the third class
    for part in ("train", "test"):
        stored(some, tmp_path / f"{part}.beton")
    with pytest.raises(LtatError, match=r"class 2 \(cat\) has no training image"):
        load_dataset("beton", tmp_path)


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    stored(noise(), tmp_path / "train.beton")
    with pytest.raises(LtatError, match=r"there is no file .*test.beton; check --data-dir"):
        load_beton(tmp_path)
    for path in (tmp_path / "train.beton", sidecar_path(tmp_path / "train.beton")):
        shutil.copy(path, tmp_path / path.name.replace("train", "test"))
    with pytest.raises(LtatError, match=r"test.beton was written as train.beton; rename it to that"):
        load_beton(tmp_path)
    (tmp_path / "test.beton.json").unlink()
    with pytest.raises(LtatError, match=r"test.beton has no test.beton.json"):
        load_beton(tmp_path)
    os.mkfifo(tmp_path / "test.beton.json")  # would be waited for
    with pytest.raises(LtatError, match=r"test.beton has no test.beton.json"):
        load_beton(tmp_path)
    (tmp_path / "test.beton.json").unlink()
    write_beton(noise(), tmp_path / "test.beton", ("x", "y", "z"), name="other")
    with pytest.raises(LtatError, match="different class names"):
        load_beton(tmp_path)
    with pytest.raises(LtatError, match="cannot be downloaded"):
        load_beton(tmp_path, download=True)


# Writing that fails


class Failing(ImageStore):
    """Images of which number 33 does something else."""

    def __init__(self, act):
        self.shape, self.act = (N, 7, 6, 3), act

    def read(self, positions):
        changed = self.act() if 33 in positions else None
        return noise().images[positions] if changed is None else changed

    def subset(self, positions):
        raise NotImplementedError


def failing(act) -> Split:
    split = noise()
    return Split(Failing(act), split.labels, 3, split.indices)


def refused(split: Split, path: Path, **settings) -> str:
    """The sentence with which writing fails without a trace."""
    before = {name: name.read_bytes() for name in path.parent.iterdir()}
    shared = set(os.listdir("/dev/shm"))
    with pytest.raises(LtatError) as error:
        stored(split, path, **settings)
    assert {name: name.read_bytes() for name in path.parent.iterdir()} == before
    assert not left_in_memory(shared)
    assert not multiprocessing.active_children()
    assert "\n" not in str(error.value)
    return str(error.value)


def left_in_memory(before: set[str]) -> set[str]:
    """Shared memory that is still there after a second: other programs of this machine make some for a moment."""
    new = {name for name in set(os.listdir("/dev/shm")) - before if name.startswith("psm_")}
    if new:
        time.sleep(1)
    return new & set(os.listdir("/dev/shm"))


def raises(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "fragment"),
    [
        (raises(LtatError("photo.png is broken; remove it")), "x.beton: photo.png is broken; remove it"),
        (raises(OSError(28, "No space left on device")), "No space left on device; free some space"),
        (raises(RuntimeError("boom")), "RuntimeError: boom"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), r"a worker was killed (SIGKILL)"),
        (lambda: os._exit(3), "a worker ended with code 3"),
        (lambda: time.sleep(60), "no image was written for 2 s"),
        (lambda: np.zeros((1, 7, 6, 1), np.uint8), "image 33 is uint8 (7, 6, 1) among uint8 (7, 6, 3)"),
        (lambda: np.zeros((1, 7, 6, 3), np.float32), "image 33 is float32"),
    ],
)
def test_whatever_happens_to_an_image_is_reported(tmp_path, monkeypatch, act, fragment):
    if "was written" in fragment:  # the others end however slow the machine is
        monkeypatch.setattr(writing, "STALLED_AFTER", 2.0)
    assert fragment in refused(failing(act), tmp_path / "x.beton")


class Clock:
    """Time that passes only while it is waited for; it stands for the module ``time``."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, _seconds: float) -> None:
        self.now += 1.0


class Timetable:
    """A queue in which each message appears at its time."""

    def __init__(self, clock: Clock, *messages: tuple[float, Message]) -> None:
        self.clock, self.messages = clock, list(messages)

    def empty(self) -> bool:
        return not self.messages or self.messages[0][0] > self.clock.now

    def get(self) -> Message:
        return self.messages.pop(0)[1]


@pytest.mark.parametrize(
    ("messages", "fragment"),
    [
        ([(400, Message()), (450, Message(16)), (460, Message(complete=True))], ""),
        ([(400, Message()), (450, Message(16)), (600, Message(complete=True))], "no image was written for 60 s"),
        ([], "FFCV was not imported within 600 s"),
    ],
)
def test_a_writer_that_starts_slowly_on_a_busy_machine_is_waited_for(monkeypatch, messages, fragment):
    clock = Clock()
    monkeypatch.setattr(writing, "time", clock)
    process = SimpleNamespace(is_alive=lambda: True)
    with pytest.raises(LtatError, match=fragment) if fragment else contextlib.nullcontext():
        assert list(writing._heard(process, Timetable(clock, *messages), Path("x.beton"))) == [0, 16]


def test_a_failure_leaves_the_file_that_was_there(tmp_path):
    stored(noise(seed=3), tmp_path / "x.beton")
    refused(failing(raises(RuntimeError("boom"))), tmp_path / "x.beton")
    np.testing.assert_array_equal(opened(tmp_path / "x.beton").images[:], noise(seed=3).images)


@contextlib.contextmanager
def largest_file(size: int):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("size", [1000, 3 << 20, (4 << 20) + 100])
def test_a_disk_that_fills_up_is_reported_wherever_it_happens(tmp_path, size):
    """In the header, in the first page, and (a write that is cut short without an error) in the allocation table."""
    with largest_file(size):
        sentence = refused(noise(), tmp_path / "x.beton")
    assert str(tmp_path / "x.beton") in sentence


def test_a_write_cut_short_without_an_error_is_noticed(tmp_path, monkeypatch):
    whole = writing._write

    def short(job, *arguments):
        whole(job, *arguments)
        os.truncate(job.path, job.path.stat().st_size - 24)

    monkeypatch.setattr(writing, "_write", short)
    assert "do not fill the file" in refused(noise(), tmp_path / "x.beton")


def test_a_disk_that_is_too_small_is_reported_before(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1_000_000))
    assert "it takes 4 MB and 1 MB are free" in refused(noise(), tmp_path / "x.beton")


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"mode": "png"}, "unknown mode 'png'"),
        ({"mode": "jpeg", "quality": 0}, "jpeg quality 0 is outside 1..100"),
        ({"workers": 0}, "0 workers"),
        ({"workers": 10_000}, "10000 workers"),
    ],
)
def test_wrong_settings_are_reported(tmp_path, settings, fragment):
    assert fragment in refused(noise(), tmp_path / "x.beton", **settings)


def test_jpeg_is_for_colour_images(tmp_path):
    assert "these have 1 channels; use mode raw" in refused(noise(channels=1), tmp_path / "x.beton", mode="jpeg")


def test_every_class_needs_its_name(tmp_path):
    with pytest.raises(LtatError, match="2 names for 3 classes"):
        write_beton(noise(), tmp_path / "x.beton", ("ant", "bee"), name="x")


def test_without_ffcv_the_script_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "find_spec", lambda name: None)
    assert "python -m ltat.install_ffcv" in refused(noise(), tmp_path / "x.beton")


def gone(pid: int) -> bool:
    """Whether a process ends within ten seconds."""
    for _ in range(1000):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


def reporting(path: Path):
    def act():
        path.with_suffix(".part").write_text(str(os.getpid()))
        path.with_suffix(".part").rename(path)
        time.sleep(60)

    return act


def test_an_interrupt_ends_the_writer_and_leaves_nothing(tmp_path):
    seen = []

    def interrupt(done, total):
        seen.append(done)
        raise KeyboardInterrupt

    pid_file = tmp_path.with_suffix(".pid")
    with pytest.raises(KeyboardInterrupt):
        stored(failing(reporting(pid_file)), tmp_path / "x.beton", on_progress=interrupt)
    assert seen and seen[0] < N
    assert not list(tmp_path.iterdir()) and not multiprocessing.active_children()
    if pid_file.exists():
        assert gone(int(pid_file.read_text()))


def test_the_writer_ends_with_a_caller_that_is_killed(tmp_path):
    pid_file = tmp_path / "pid"
    caller = multiprocessing.get_context("fork").Process(
        target=stored, args=(failing(reporting(pid_file)), tmp_path / "out" / "x.beton")
    )
    caller.start()
    for _ in range(1000):
        if pid_file.exists():
            break
        time.sleep(0.01)
    caller.kill()
    caller.join()
    assert gone(int(pid_file.read_text()))
    assert not (tmp_path / "out" / "x.beton").exists()


def test_the_sidecar_is_plain_json(written):
    sidecar = json.loads(sidecar_path(written / "colour.beton").read_text())
    assert sidecar["sha256"] and sidecar["shape"] == [7, 6, 3] and sidecar["counts"] == [30, 15, 5]
    assert isinstance(opened(written / "colour.beton").images, BetonImages)
