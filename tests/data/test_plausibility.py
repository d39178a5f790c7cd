"""Arrays that cannot be what they are given for are refused with what they look like and what mends them."""

import numpy as np
import pytest

from ltat.data import Dataset, Split, load_dataset
from ltat.errors import LtatError

IMAGES = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), dtype=np.uint8)
LABELS = np.arange(8) % 2


def written(folder, images=IMAGES, labels=LABELS, test_images=None, test_labels=LABELS):
    np.savez(folder / "train.npz", images=images, labels=labels)
    np.savez(folder / "test.npz", images=255 - IMAGES if test_images is None else test_images, labels=test_labels)
    return load_dataset("npz", folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda images: images.transpose(0, 3, 1, 2),
            r"looks like \[N, ch, H, W\]; store images.transpose\(0, 2, 3, 1\)",
        ),
        (lambda images: images[..., :2], "grey with transparency"),
        (lambda images: np.concatenate([images] * 3, axis=-1), "images of 9 channels"),
        (lambda images: np.full_like(images, 7), "every pixel of the training images is 7"),
        (lambda images: images // 128, "hold 0 and 1 only"),
    ],
)
def test_implausible_images_are_refused_from_files_and_from_python(change, says: str, tmp_path):
    images = np.ascontiguousarray(change(IMAGES))
    other = np.ascontiguousarray(change(255 - IMAGES))
    with pytest.raises(LtatError, match=says):
        written(tmp_path, images, test_images=other)
    splits = [Split(array, LABELS, 2, np.arange(8)) for array in (images, other)]
    with pytest.raises(LtatError, match=says):
        Dataset("mine", *splits, ("a", "b"))


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (IMAGES / 255, r"\[0, 1\]; store \(images \* 255\)"),
        (IMAGES / 127.5 - 1, r"\[-1, 1\]"),
        ((IMAGES / 255 - 0.5) / 0.2, "standardised"),
        (IMAGES.astype(np.float32), r"store images\.round\(\)\.astype\(np\.uint8\)"),
        (IMAGES.astype(np.uint16) * 257, "16 bits"),
        (IMAGES > 128, r"\* 255"),
    ],
)
def test_images_that_are_not_bytes_are_reported_how_to_become_so(images: np.ndarray, says: str, tmp_path):
    with pytest.raises(LtatError, match=says):
        written(tmp_path, images)


def test_a_test_set_that_is_the_training_set_is_refused(tmp_path):
    with pytest.raises(LtatError, match="the test images are the training images"):
        written(tmp_path, test_images=IMAGES)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (LABELS + 1, "count from 1; store labels - 1"),
        (np.eye(2, dtype=np.int64)[LABELS], "one-hot"),
        (LABELS[:, None], r"labels\[:, 0\]"),
        (LABELS.astype(float), "astype"),
    ],
)
def test_labels_of_another_form_are_reported_how_to_become_numbers_from_0(labels: np.ndarray, says: str, tmp_path):
    with pytest.raises(LtatError, match=says):
        written(tmp_path, labels=labels)


def test_small_grey_and_dark_sets_pass(tmp_path):
    grey = np.ascontiguousarray(IMAGES[:, :5, :5, :1]) // 100
    assert written(tmp_path, grey, test_images=grey[::-1]).image_shape == (5, 5, 1)
