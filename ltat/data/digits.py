"""scikit-learn's bundled handwritten digits: 1,797 real 8x8 grey images, no download."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ltat.data.grouping import images_by_class
from ltat.data.split import Dataset, Split
from ltat.seeding import numpy_generator

_TEST_PER_CLASS = 40
_TEST_SEED = 0


def load_digits(data_dir: Path | None = None, download: bool = False) -> Dataset:
    """Digits 0..9: uint8 [N, 8, 8, 1], 400 test images (40 per class, always the same), 1,397 for training.

    The original values 0..16 become round(v * 255 / 16). ``data_dir`` and ``download`` are not needed.
    """
    bundled = np.loadtxt(_bundled_file(), delimiter=",", dtype=np.int64)
    images = np.rint(bundled[:, :-1].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    names = tuple(str(digit) for digit in range(10))
    everything = Split(images, bundled[:, -1], 10, np.arange(len(images)), names)
    by_class = images_by_class(everything.labels, 10)
    test = np.sort(np.concatenate([_test_images(own, c) for c, own in enumerate(by_class)]))
    train = np.setdiff1d(everything.indices, test, assume_unique=True)
    return Dataset("digits", everything.subset(train), everything.subset(test), names)


def _bundled_file() -> Path:
    """The file that :func:`sklearn.datasets.load_digits` reads; importing that function takes seconds.

    A line is the 64 values of an image and its label.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    return Path(package.origin).parent / "datasets/data/digits.csv.gz"


def _test_images(own: np.ndarray, label: int) -> np.ndarray:
    return numpy_generator(_TEST_SEED, "digits-test", label).permutation(own)[:_TEST_PER_CLASS]
