"""`ltat data`: what it writes can be trained on, what it tells is true, and what goes wrong leaves nothing behind."""

import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from ltat.cli import data as data_command
from ltat.cli.main import main
from ltat.cli.options import DATASETS as NAMED
from ltat.data import DATASETS, ImageStore, index_hash, load_dataset, longtail_counts
from ltat.data.beton.library import load_ffcv
from ltat.data.image_files import ImageFiles
from ltat.data.npz import write_npz
from ltat.errors import LtatError
from ltat.evaluation.chart import write_counts_chart
from tests.data.pictures import image_folder, picture, tiny_imagenet


def ltat(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    result = ltat(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = ltat(*arguments)
    assert result.exit_code == 2, result.output
    assert len(result.output.strip().splitlines()) == 1
    return result.output


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- prepare


@pytest.mark.parametrize("place", ["file/below", "/proc/below"])
def test_a_place_that_cannot_be_written_is_reported(place: str, tmp_path: Path):
    (tmp_path / "file").touch()
    assert "cannot write" in refused("data", "prepare", "digits", "--out", tmp_path / place)


def test_a_prepared_npz_is_the_data_set(tmp_path: Path):
    output = done("data", "prepare", "digits", "--imbalance-ratio", 10, "--out", tmp_path / "my set")
    original = load_dataset("digits", imbalance_ratio=10)
    copy = load_dataset("npz", tmp_path / "my set")
    assert names_in(tmp_path / "my set") == ["test.npz", "train.npz"]
    for one, other in ((original.train, copy.train), (original.test, copy.test)):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.indices, other.indices)
    assert copy.class_names == original.class_names
    # Digits are neither padded nor mirrored by default; npz files are, so the next command must say otherwise.
    assert f"--dataset npz --data-dir '{tmp_path}/my set' --set aug.pad=0 --set aug.flip=false" in output


def test_image_files_of_any_size_are_prepared_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, asked = image_folder(tmp_path / "in", per_class=100), []
    for i in range(5):
        picture(folder / f"train/bee/{i}.png", (9 + i, 12))
    real = ImageFiles.read
    monkeypatch.setattr(ImageFiles, "read", lambda self, p: (asked.append(len(p)), real(self, p))[1])
    command = ("data", "prepare", "imagefolder", "--data-dir", folder, "--out", tmp_path / "out")
    assert "--image-size" in refused(*command)
    done(*command, "--image-size", 7)
    assert max(asked) <= 256 < sum(asked) == 306
    original, copy = load_dataset("imagefolder", folder, image_size=7), load_dataset("npz", tmp_path / "out")
    np.testing.assert_array_equal(original.train.images[:], copy.train.images)
    assert copy.class_names == ("ant", "bee", "cat") and copy.image_shape == (7, 7, 3)
    assert index_hash(copy.train.indices) == index_hash(original.train.indices)


def test_tiny_imagenet_and_an_index_list_are_prepared_too(tmp_path: Path):
    tiny_imagenet(tmp_path, per_class=10)
    done("data", "prepare", "tiny-imagenet", "--data-dir", tmp_path, "--out", tmp_path / "tiny")
    counts = load_dataset("npz", tmp_path / "tiny").train.counts
    assert counts.tolist() == longtail_counts(10, 3, 10).tolist()  # the usual ratio of that set
    folder = image_folder(tmp_path / "listed")
    (folder / "a.txt").write_text("train/ant/0.png 0\ntrain/bee/1.png 1\ntrain/bee/2.png 1\n")
    (folder / "b.txt").write_text("test/bee/0.png 1\n")
    lists = ("--train-list", folder / "a.txt", "--test-list", folder / "b.txt")
    done("data", "prepare", "imagelist", "--data-dir", folder, *lists, "--out", tmp_path / "list")
    assert load_dataset("npz", tmp_path / "list").train.labels.tolist() == [0, 1, 1]


def test_a_bad_image_stops_the_preparation_and_leaves_nothing(tmp_path: Path):
    folder = image_folder(tmp_path / "in")
    path = folder / "train/cat/2.png"
    path.write_bytes(path.read_bytes()[:-60])
    output = refused("data", "prepare", "imagefolder", "--data-dir", folder, "--out", tmp_path / "out")
    assert f"{path} cannot be read as an image" in output
    assert names_in(tmp_path) == ["in"]


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow beyond 20 kB, as on a disk that is full by then."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, there: bool, small_disk: None):
    if there:
        (tmp_path / "out").mkdir()
        (tmp_path / "out/notes").touch()
    output = refused("data", "prepare", "digits", "--out", tmp_path / "out")
    assert f"cannot write {tmp_path}/out/test.npz: File too large; free some space" in output
    assert (names_in(tmp_path / "out") == ["notes"]) if there else (names_in(tmp_path) == [])


def test_the_first_file_does_not_appear_when_the_second_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def write(split, path, class_names, *, on_progress):
        if path.name == "train.npz":
            raise LtatError("no more space")
        write_npz(split, path, class_names, on_progress=on_progress)

    monkeypatch.setattr("ltat.data.npz.write_npz", write)
    assert "no more space" in refused("data", "prepare", "digits", "--out", tmp_path / "out")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(("number", "output"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_stopped_preparation_leaves_nothing(number, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore Ctrl-C
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # unheeded, it must not end the tests

    def write(split, path, class_names, *, on_progress):
        write_npz(split, path, class_names)
        if path.name == "train.npz":
            os.kill(os.getpid(), number)

    monkeypatch.setattr("ltat.data.npz.write_npz", write)
    try:
        result = ltat("data", "prepare", "digits", "--out", tmp_path / "out")
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, usual)
    assert (result.exit_code, result.output) == (1, f"Error: {output}; nothing was written\n")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("layout", ["npz", "beton"])
def test_what_was_prepared_before_is_not_overwritten(layout: str, tmp_path: Path):
    (tmp_path / f"train.{layout}").write_text("precious")
    output = refused("data", "prepare", "digits", "--out", tmp_path, "--format", layout)
    assert f"train.{layout} exists already" in output
    assert names_in(tmp_path) == [f"train.{layout}"]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--mode", "raw"], "--mode belongs to --format beton"),
        (["--workers", 2], "--workers belongs to --format beton"),
        (["--format", "beton", "--quality", 90], "--quality belongs to --mode jpeg"),
        (["--image-size", 9], "takes no image_size"),
        (["--dataset", "cifar10"], "two data sets are named, 'digits' and 'cifar10'"),
    ],
)
def test_settings_that_do_not_apply_are_refused(arguments: list[object], fragment: str, tmp_path: Path):
    assert fragment in refused("data", "prepare", "digits", "--out", tmp_path / "out", *arguments)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("mode", ["raw", "jpeg"])
def test_a_prepared_beton_is_the_data_set(tmp_path: Path, mode: str):
    if find_spec("ffcv") is None:
        pytest.skip("FFCV is not installed")
    load_ffcv()  # here once, instead of in each writer, which is forked
    folder = image_folder(tmp_path / "in", per_class=20)
    for path in folder.rglob("*.png"):
        Image.open(path).resize((32, 32), Image.Resampling.BICUBIC).save(path)
    command = (
        "data",
        "prepare",
        "imagefolder",
        "--data-dir",
        folder,
        "--imbalance-ratio",
        4,
        "--out",
        tmp_path / "out",
    )
    done(*command, "--format", "beton", "--mode", mode)
    assert names_in(tmp_path / "out") == [f"{n}.beton{s}" for n in ("test", "train") for s in ("", ".json")]
    original = load_dataset("imagefolder", folder, imbalance_ratio=4)
    copy = load_dataset("beton", tmp_path / "out")
    assert copy.class_names == ("ant", "bee", "cat")
    for one, other in ((original.train, copy.train), (original.test, copy.test)):
        assert isinstance(other.images, ImageStore)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.indices, other.indices)
        off = np.abs(one.images[:].astype(int) - other.images[:])
        assert off.max() == 0 if mode == "raw" else 0 < off.mean() < 10


# --- info


def test_the_data_set_may_be_an_argument_or_an_option():
    output = done("data", "info", "digits")
    assert (
        output == done("data", "info", "--dataset", "digits") == done("data", "info", "digits", "--dataset", "digits")
    )
    assert "add --dataset" in refused("data", "info")


def test_info_tells_the_figures_of_the_subset(tmp_path: Path):
    output = done("data", "info", "digits", "--imbalance-ratio", 20, "--json", tmp_path / "summary.json")
    summary = json.loads((tmp_path / "summary.json").read_text())
    counts = [138, 98, 70, 50, 36, 26, 18, 13, 9, 6]
    assert summary["counts"] == counts and summary["class_names"] == list("0123456789")
    assert summary["imbalance_ratio"] == 23 and summary["balanced_images"] == 690 and summary["test_images"] == 400
    assert summary["groups"] == {
        "many": {"classes": 1, "train_images": 138},
        "medium": {"classes": 5, "train_images": 98 + 70 + 50 + 36 + 26},
        "few": {"classes": 4, "train_images": 18 + 13 + 9 + 6},
        "tail": {"classes": 1, "train_images": 6},
    }
    assert summary["index_sha256"] == index_hash(load_dataset("digits", imbalance_ratio=20).train.indices)
    bars = [line.count("█") for line in output.splitlines()]
    assert [bar for bar in bars if bar] == [max(1, round(40 * n / 138)) for n in counts]
    for line in ("imbalance ratio 23", "few: 4 of 10 classes, 46 training images", "D_B holds 690 images"):
        assert line in output.splitlines()


def test_names_do_not_steer_the_terminal(tmp_path: Path):
    image_folder(tmp_path / "mine")
    for part in ("train", "test"):
        (tmp_path / "mine" / part / "bee").rename(tmp_path / "mine" / part / "b\x1b[2Jee\nx")
    output = done("data", "info", "imagefolder", "--data-dir", tmp_path / "mine")
    assert "\x1b" not in output and r"b\x1b[2Jee\nx      3 █" in output


def test_info_opens_no_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(ImageFiles, "read")
    assert "9 training and 6 test images of 6x8x3" in done(
        "data", "info", "imagefolder", "--data-dir", image_folder(tmp_path)
    )


def test_a_ratio_of_zero_is_refused_and_not_replaced_by_the_default():
    assert "0.0" in refused("data", "info", "--dataset", "digits", "--imbalance-ratio", "0")


def colours(file: Path) -> set[tuple[int, ...]]:
    pixels = np.asarray(Image.open(file).convert("RGB"))
    return set(map(tuple, np.unique(pixels.reshape(-1, 3), axis=0).tolist()))


def test_the_png_shows_the_groups_there_are(tmp_path: Path):
    done("data", "info", "digits", "--png", tmp_path / "a/digits.png")
    many, medium, few = (0x44, 0x77, 0xAA), (0xCC, 0xBB, 0x44), (0xEE, 0x66, 0x77)
    assert {many, medium, few} <= colours(tmp_path / "a/digits.png")
    write_counts_chart(tmp_path / "b.png", longtail_counts(500, 100, 10), ["$odd\\name"] * 100, "$a$ \\title")
    assert few not in colours(tmp_path / "b.png") >= {many, medium}
    assert Image.open(tmp_path / "b.png").size == (1200, 600)


@pytest.mark.parametrize("option", ["--png", "--json"])
def test_a_figure_that_cannot_be_written_is_reported_before_the_data_are_read(option: str, tmp_path: Path):
    (tmp_path / "file").touch()
    assert "cannot write" in refused("data", "info", "no-such-set", option, tmp_path / "file/below")


def test_without_matplotlib_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    output = ltat("data", "info", "digits", "--png", tmp_path / "x.png")
    assert output.exit_code == 2 and "pip install matplotlib" in output.output.splitlines()[-1]
    assert names_in(tmp_path) == []


def test_the_help_names_every_data_set():
    assert set(NAMED) == set(DATASETS)
    assert set(data_command.WRITERS) == {"npz", "beton"}


def test_too_little_memory_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ltat.data.load_dataset", lambda *_, **__: np.empty((2**20, 2**20, 2**15), np.uint8))
    assert "not enough memory (Unable to allocate 32.0 PiB" in refused("data", "info", "digits")


def test_data_info_writes_its_files_before_it_shows_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ltat.cli.data.show", lambda summary: sys.exit(3))
    done = ltat("data", "info", "digits", "--json", tmp_path / "summary.json")
    assert done.exit_code == 3 and (tmp_path / "summary.json").exists()


def test_data_info_with_two_outputs_of_one_name_is_refused(tmp_path: Path):
    (tmp_path / "link").symlink_to("file")
    done = ltat("data", "info", "digits", "--json", tmp_path / "file", "--png", tmp_path / "link")
    assert done.exit_code == 2 and "both write to" in done.output and not (tmp_path / "file").exists()


def test_what_a_command_writes_goes_through_links_and_leaves_them(tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("summary.json", "chart.png", "train.npz"):
        (tmp_path / "elsewhere" / name).write_bytes(b"old")
        (tmp_path / name).symlink_to(f"elsewhere/{name}")
    done("data", "info", "digits", "--json", tmp_path / "summary.json", "--png", tmp_path / "chart.png")
    write_npz(load_dataset("digits").train, tmp_path / "train.npz", [str(c) for c in range(10)])
    assert json.loads((tmp_path / "elsewhere/summary.json").read_text())
    assert (tmp_path / "elsewhere/chart.png").read_bytes().startswith(b"\x89PNG")
    assert np.load(tmp_path / "elsewhere/train.npz")["labels"].size
    assert all((tmp_path / name).is_symlink() for name in ("summary.json", "chart.png", "train.npz"))
