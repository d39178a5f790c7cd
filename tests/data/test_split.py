import hashlib
import struct

import numpy as np
import pytest

from ltat.data import Dataset, Split, index_hash
from ltat.errors import LtatError


def make(n=6, shape=(4, 5, 3), num_classes=3, **changes):
    fields = {
        "images": np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8),
        "labels": np.arange(n) % num_classes,
        "num_classes": num_classes,
        "indices": np.arange(n),
    }
    return Split(**(fields | changes))


def test_subset_remembers_where_images_came_from():
    twice = make().subset(np.array([5, 3, 1])).subset(np.array([2, 0]))
    assert twice.indices.tolist() == [1, 5]
    np.testing.assert_array_equal(twice.images, make().images[[1, 5]])
    assert twice.labels.tolist() == [1, 2]
    assert twice.counts.tolist() == [0, 1, 1]


def test_hash_is_of_little_endian_int64():
    assert index_hash(np.array([1, 258], dtype=np.int32)) == hashlib.sha256(struct.pack("<2q", 1, 258)).hexdigest()


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"images": np.zeros((6, 4, 5, 3))}, "float64"),
        ({"images": np.full((6, 4, 5, 3), np.nan)}, "float64 with NaN"),
        ({"images": np.zeros((6, 4, 5), np.uint8)}, r"\(6, 4, 5\)"),
        ({"images": np.zeros((6, 0, 5, 3), np.uint8)}, "none of them 0"),
        ({"images": np.zeros((6, 3, 4, 5), np.uint8).transpose(0, 2, 3, 1)}, "C-contiguous"),
        ({"images": [[0]]}, "images are list"),
        ({"labels": np.zeros(6)}, "labels are float64"),
        ({"labels": np.zeros(5, np.int64)}, r"\(5,\) for 6 images"),
        ({"labels": np.full(6, 3)}, r"label 3 at position 0 is outside 0\.\.2"),
        ({"labels": np.array([0, 0, 0, -1, 0, 0])}, "label -1 at position 3"),
        ({"indices": np.arange(6, dtype=np.int32)}, "indices are int32"),
    ],
)
def test_bad_split_is_refused_by_value(changes, fragment):
    with pytest.raises(LtatError, match=fragment):
        make(**changes)


@pytest.mark.parametrize("indices", [[6], [-1], [0.5], [[0]]])
def test_position_outside_the_split_is_refused(indices):
    with pytest.raises(LtatError, match="ind"):
        make().subset(np.array(indices))


def test_splits_of_different_shapes_make_no_dataset():
    with pytest.raises(LtatError, match=r"\(4, 5, 3\) but test images are \(4, 5, 1\)"):
        Dataset("mine", make(), make(shape=(4, 5, 1)), ("a", "b", "c"))
    with pytest.raises(LtatError, match="2 class names"):
        Dataset("mine", make(), make(), ("a", "b"))
