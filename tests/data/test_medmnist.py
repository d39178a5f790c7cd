"""MedMNIST's published layout, made here in small."""

import numpy as np
import pytest

from ltat.data import find_spec, load_dataset
from ltat.errors import LtatError

RNG = np.random.default_rng(0)


def published(colour, **changes):
    """Arrays as in a published file: 3 classes, imbalanced, labels [N, 1]."""
    shape = (28, 28, 3) if colour else (28, 28)
    arrays = {}
    for part, n in (("train", 20), ("val", 6), ("test", 9)):
        arrays[f"{part}_images"] = RNG.integers(0, 256, (n, *shape), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.minimum(np.arange(n) % 4, 2)[:, None].astype(np.uint8)
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def test_organs_are_not_mirrored_by_default():
    assert not find_spec("medmnist").flip


@pytest.mark.parametrize("colour", [False, True])
def test_a_published_file_gives_its_training_and_test_images(tmp_path, colour):
    arrays = published(colour)
    np.savez(tmp_path / "dermamnist.npz", **arrays)
    for place in (tmp_path, tmp_path / "dermamnist.npz"):
        data = load_dataset("medmnist", place)
        assert (data.name, data.image_shape) == ("dermamnist", (28, 28, 3 if colour else 1))
        for split, part in ((data.train, "train"), (data.test, "test")):
            stored = arrays[f"{part}_images"]
            np.testing.assert_array_equal(split.images.reshape(stored.shape), stored)
            assert split.labels.tolist() == arrays[f"{part}_labels"][:, 0].tolist()
    assert data.train.counts.tolist() == [5, 5, 10] and data.class_names == ("0", "1", "2")


def test_a_ratio_may_be_imposed(tmp_path):
    np.savez(tmp_path / "x.npz", **published(False))
    assert load_dataset("medmnist", tmp_path, imbalance_ratio=5).train.counts.tolist() == [5, 2, 1]


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        (
            {"train_labels": np.zeros((20, 14), np.uint8)},
            r"train_labels .* \(20, 14\); only sets of one label per image",
        ),
        ({"train_images": np.zeros((20, 28, 28, 28), np.uint8)}, r"\(20, 28, 28, 28\); only images"),
        ({"test_images": np.zeros((9, 28), np.uint8)}, "test_images in .* only images"),
        ({"test_images": None}, "has no 'test_images'"),
        ({"train_labels": None}, "has no 'train_labels'"),
        ({"train_images": np.zeros((20, 28, 28), np.float32)}, "images are float32"),
        ({"train_images": np.zeros((19, 28, 28), np.uint8)}, "labels in .* for 19 images"),
        ({"test_images": np.zeros((9, 28, 28, 3), np.uint8)}, r"\(28, 28, 1\) but test images are \(28, 28, 3\)"),
        ({"test_labels": np.full((9, 1), 3)}, r"x\.npz: label 3 at position 0 is outside 0\.\.2"),
        ({"train_labels": np.arange(20)[:, None] % 2 * 2}, r"class 1 \(1\) has no training image"),
        ({"train_labels": np.full((20, 1), -1)}, "label -1"),
        ({"train_labels": np.array([[{}]] * 20, dtype=object)}, "Python objects"),
    ],
)
def test_what_cannot_be_used_is_reported_in_one_sentence(tmp_path, changes, fragment):
    np.savez(tmp_path / "x.npz", **published(False, **changes))
    with pytest.raises(LtatError, match=fragment) as caught:
        load_dataset("medmnist", tmp_path)
    assert "\n" not in str(caught.value)


def test_no_file_several_and_a_damaged_one_are_reported(tmp_path):
    def refused(fragment, place=tmp_path, **settings):
        with pytest.raises(LtatError, match=fragment):
            load_dataset("medmnist", place, **settings)

    refused(r"holds 0 \.npz files; name the one to read with --data-dir FILE")
    refused("No such file", tmp_path / "nowhere.npz")
    np.savez(tmp_path / "x.npz", **published(True))
    refused("cannot be downloaded", download=True)
    data = bytearray((tmp_path / "x.npz").read_bytes())
    data[len(data) // 3] ^= 1
    (tmp_path / "x.npz").write_bytes(data)
    refused(r"x\.npz cannot be read .*CRC")
    (tmp_path / "y.npz").touch()
    refused(r"holds 2 \.npz files")
