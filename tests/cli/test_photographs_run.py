"""Photographs in the layouts that people have: a run from the command line to its evaluation, on long tails."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from ltat.cli.main import main
from tests.data.pictures import tiny_imagenet

CLASSES, EACH, SIDE = 3, 12, 64
RATIO = 4
QUICK = [
    *("--method", "self-distill", "--model", "small", "--epochs", "1", "--batch-size", "8", "--device", "cpu"),
    *("--set", "attack.steps=1", "--set", "select.set=none", "--set", 'eval.attacks=["clean", "pgd2"]'),
    *("--set", "teacher.epochs=1", "--set", "teacher.batch_size=8"),
]


def ltat(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    """The two photographs of scikit-learn, uint8 [427, 640, 3]."""
    datasets = pytest.importorskip("sklearn.datasets")
    return list(datasets.load_sample_images().images)


def crop(photographs: list[np.ndarray], label: int, number: int, side: int = SIDE) -> Image.Image:
    """A square of the photograph of a class; the third class is the second photograph in grey."""
    photograph = photographs[min(label, 1)]
    top, left = divmod(number, 8)
    square = photograph[60 * top : 60 * top + side, 70 * left : 70 * left + side]
    image = Image.fromarray(square)
    return image.convert("L") if label == 2 else image  # Tiny-ImageNet has grey files, too


def evaluated(out: Path, tmp_path: Path) -> dict:
    """The last report of a run, after `ltat eval` has found the same."""
    done = ltat("eval", out / "last", "--attacks", "clean", "--device", "cpu", "--json", tmp_path / "again.json")
    assert done.exit_code == 0, done.output
    report = json.loads((out / "report.json").read_text())["last"]
    assert json.loads((tmp_path / "again.json").read_text())["clean"] == report["clean"]
    return report


def training_images(out: Path) -> list[int]:
    """The images of each class that a run was trained on."""
    counts: list[int] = json.loads((out / "last.json").read_text())["extra"]["train_counts"]
    return counts


def test_tiny_imagenet_lt_in_its_official_layout(photographs: list[np.ndarray], tmp_path: Path):
    folder = tiny_imagenet(tmp_path, CLASSES, EACH)
    ids = sorted((folder / "wnids.txt").read_text().split())
    for label, name in enumerate(ids):
        for number in range(EACH):
            crop(photographs, label, number).save(folder / f"train/{name}/images/{name}_{number}.JPEG")
        crop(photographs, CLASSES - 1 - label, EACH + 4).save(folder / f"val/images/val_{label}.JPEG")
    data = ("--dataset", "tiny-imagenet", "--data-dir", tmp_path, "--imbalance-ratio", RATIO)
    trained = ltat("train", *data, *QUICK, "--out", tmp_path / "run")
    assert trained.exit_code == 0, trained.output
    report = evaluated(tmp_path / "run", tmp_path)
    assert (report["n"], report["clean"]["n"]["tail"], report["pgd2"]["n"]["per_class"]) == (3, 1, [1, 1, 1])
    assert training_images(tmp_path / "run") == [12, 6, 3]


def test_an_image_folder_that_is_imbalanced_by_nature(photographs: list[np.ndarray], tmp_path: Path):
    sizes = {"china": 14, "flower": 6, "grey": 2}
    for label, (name, size) in enumerate(sizes.items()):
        for part, numbers in (("train", range(size)), ("test", range(size, size + 2))):
            place = tmp_path / "images" / part / name
            place.mkdir(parents=True)
            for number in numbers:
                crop(photographs, label, number, 40 + 3 * number).save(
                    place / f"{number}.jpg"
                )  # photographs differ in size
    data = ("--dataset", "imagefolder", "--data-dir", tmp_path / "images", "--image-size", 32, "--channels", 3)
    trained = ltat("train", *data, *QUICK, "--out", tmp_path / "run")
    assert trained.exit_code == 0, trained.output
    report = evaluated(tmp_path / "run", tmp_path)
    assert report["n"] == 6 and report["clean"]["n"]["few"] == 6 and report["clean"]["n"]["tail"] == 2
    assert training_images(tmp_path / "run") == list(sizes.values())
