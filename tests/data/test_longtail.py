import math
import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ltat import native
from ltat.data import index_hash, longtail_counts, longtail_indices
from ltat.data.grouping import group_by_class
from ltat.data.longtail import profile_counts
from ltat.errors import LtatError

REAL_LABELS = Path(__file__).parents[3] / "shared/data/cifar_train_labels.npz"
PACKS = {
    "cifar10": ("cifar10_lt_ir10.webp.npz", 10),
    "cifar100": ("cifar100_lt_ir5.webp.npz", 5),
}
# (dataset, ratio, images, SHA-256 of the published subset's positions: legacy seed 0, reference order)
REFERENCE = [
    ("cifar10", 10, 20431, "a17d69f192b1cf6df09676b6c424e2ad5e7d7863ccc4b9ba70ef128885973218"),
    ("cifar10", 20, 17023, "fed8b23a7a778a4094b8c5301522600105c4441811d1ef239ae7fc72c42f7fe5"),
    ("cifar10", 50, 13996, "d7edcfaf02772bee1e2310a33be8b6c46232f043641158348b9de3ec731e26ac"),
    ("cifar10", 100, 12406, "4bf45bff8878d2786e47dccd702f96ff33b2b11d8c7da3b5015f10937290f866"),
    ("cifar100", 5, 24856, "2241eaf10fd30b2136de8e25a009718c283de333c52cec11318e166d1c42cb95"),
    ("cifar100", 10, 19573, "b4fbf1bf0a7f33381467493f50b953ce21b03a2b6d45b0d5e8da5d95d9ffd736"),
    ("cifar100", 20, 15907, "1410f105fffda31596c5af26b044a4545124854811b80ec57538a067be3420e4"),
    ("cifar100", 50, 12608, "561fa940cc7d3551d441643e310c7e439bf84f86b7863a3f7364963522d2984a"),
    ("cifar100", 100, 10847, "e0d58a4d2700c46062da852554e5d185bbee74d3c612b052ea2a839bdadf939e"),
]
PUBLISHED_COUNTS = {
    10: [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500],
    20: [5000, 3584, 2569, 1842, 1320, 946, 678, 486, 348, 250],
    50: [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100],
    100: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50],
}
PUBLISHED_TOTALS = [
    (5000, 10, {10: 20431, 20: 17023, 50: 13996, 100: 12406}),
    (500, 100, {5: 24856, 10: 19573, 20: 15907, 50: 12608, 100: 10847}),
    (500, 200, {10: 39072, 50: 25082, 100: 21549}),
]


def naive_subset(labels, ratio, seed):
    """The reference's procedure written out over Python lists."""
    num_classes = max(labels) + 1
    n_max = len(labels) // num_classes
    generator = np.random.RandomState(seed)
    chosen = []
    for c in range(num_classes):
        positions = np.array([i for i, label in enumerate(labels) if label == c])
        generator.shuffle(positions)
        chosen += positions[: int(n_max * (1 / ratio) ** (c / (num_classes - 1)))].tolist()
    return chosen


@pytest.mark.parametrize(("ratio", "expected"), PUBLISHED_COUNTS.items())
def test_cifar10_counts_are_the_published_ones(ratio, expected):
    assert longtail_counts(5000, 10, ratio).tolist() == expected


@pytest.mark.parametrize(("n_max", "num_classes", "totals"), PUBLISHED_TOTALS)
def test_totals_are_the_published_ones(n_max, num_classes, totals):
    assert {ratio: int(longtail_counts(n_max, num_classes, ratio).sum()) for ratio in totals} == totals


@pytest.mark.parametrize(("name", "ratio", "size", "digest"), REFERENCE)
@pytest.mark.skipif(not REAL_LABELS.exists(), reason="the full CIFAR label arrays are not here")
def test_seed_0_subset_is_the_published_one(name, ratio, size, digest):
    indices = longtail_indices(np.load(REAL_LABELS)[name], ratio)
    assert (len(indices), index_hash(indices)) == (size, digest)


@pytest.mark.parametrize("name", PACKS)
@pytest.mark.skipif(not REAL_LABELS.exists(), reason="the real long-tailed packs are not here")
def test_real_pack_was_selected_the_same_way(name):
    file, ratio = PACKS[name]
    pack = np.load(REAL_LABELS.with_name(file))
    np.testing.assert_array_equal(longtail_indices(np.load(REAL_LABELS)[name], ratio), pack["train_index"])


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1])
@pytest.mark.parametrize("ratio", [1, 3, 12.5])
def test_subset_follows_the_reference_procedure(seed, ratio):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(6), 40))
    indices = longtail_indices(labels, ratio, seed)
    assert indices.dtype == np.int64
    assert indices.tolist() == naive_subset(labels.tolist(), ratio, seed)


def test_subset_hash_is_pinned_without_real_data():
    # Needs no file, so that a change of NumPy's legacy generator or of the order cannot pass unseen.
    labels = np.arange(5000) * 7 % 10
    assert (
        index_hash(longtail_indices(labels, 50)) == "ff91d1d0ebdb59ac319b57896b7daca44573d530b490dcc3d19c519157cd4526"
    )


def test_larger_ratio_keeps_a_prefix_of_each_class():
    labels = np.arange(3000) % 10
    small, large = longtail_indices(labels, 10), longtail_indices(labels, 30)
    for c in range(10):
        mine = large[labels[large] == c]
        np.testing.assert_array_equal(mine, small[labels[small] == c][: len(mine)])


def test_counts_match_exact_arithmetic():
    # The floor is checked without floating point: n_c^(C-1) <= n_max^(C-1) * mu^c < (n_c + 1)^(C-1).
    rng = random.Random(0)
    for _ in range(200):
        n_max, num_classes, ratio = rng.randint(50, 6000), rng.randint(2, 30), rng.randint(1, 40)
        for c, n in enumerate(longtail_counts(n_max, num_classes, ratio).tolist()):
            exact = Fraction(n_max ** (num_classes - 1), ratio**c)
            assert n ** (num_classes - 1) <= exact * (1 + Fraction(1, 10**12))
            assert exact < (n + 1) ** (num_classes - 1) * (1 + Fraction(1, 10**12))


def test_step_profile_splits_the_classes_in_half():
    assert longtail_counts(100, 5, 10, "step").tolist() == [100, 100, 100, 10, 10]
    assert longtail_counts(100, 4, 10, "step").tolist() == [100, 100, 10, 10]


def test_head_is_lowered_when_a_class_has_too_few_images():
    labels = np.repeat([0, 1, 2], [90, 40, 50])  # 180 // 3 = 60, but ratio 1 can take 40 of class 1 at most
    assert np.bincount(labels[longtail_indices(labels, 1)]).tolist() == [40, 40, 40]
    kept = np.bincount(labels[longtail_indices(labels, 2)])
    assert kept.tolist() == [57, 40, 28]  # 58 would ask class 1 for 41
    assert math.floor(58 * 0.5**0.5) == 41


def test_permuted_order_moves_the_counts_but_not_their_set():
    labels = np.arange(2000) % 10
    usual = np.bincount(labels[longtail_indices(labels, 10)])
    moved = np.bincount(labels[longtail_indices(labels, 10, 3, class_order="permuted")])
    assert sorted(moved) == sorted(usual)
    assert moved.tolist() != usual.tolist()


def test_global_numpy_state_is_untouched_and_unused():
    labels = np.arange(300) % 3
    np.random.seed(1)
    first = longtail_indices(labels, 5)
    after = np.random.rand()
    np.random.seed(1)
    assert after == np.random.rand()
    np.testing.assert_array_equal(first, longtail_indices(labels, 5))


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        ((100, 10, 0.5), "imbalance ratio 0.5"),
        ((100, 10, float("nan")), "imbalance ratio nan"),
        ((100, 10, float("inf")), "imbalance ratio inf"),
        ((0, 10, 2), "largest class of 0"),
        ((100, 1, 2), "1 classes"),
        ((100, 10, 2, "linear"), "'linear'"),
        ((10, 3, 50), "class 2 would keep 0"),
    ],
)
def test_bad_profile_is_refused_by_name(arguments, fragment):
    with pytest.raises(LtatError, match=fragment):
        longtail_counts(*arguments)


@pytest.mark.parametrize(
    ("labels", "keywords", "fragment"),
    [
        ([0, 0, 2, 2], {}, "class 1 has no image"),
        ([0, 1, 5], {"num_classes": 3}, "label 5 at position 2"),
        ([0, -1], {}, "label -1"),
        ([0.0, 1.0], {}, "float64"),
        ([], {}, "non-empty"),
        ([[0, 1]], {}, r"\(1, 2\)"),
        ([0, 1], {"class_order": "size"}, "'size'"),
        ([0, 1] * 9, {"seed": -1}, "seed -1"),
    ],
)
def test_bad_labels_are_refused_by_value(labels, keywords, fragment):
    with pytest.raises(LtatError, match=fragment):
        longtail_indices(np.array(labels), 2, **keywords)


@pytest.mark.skipif(native.host() is None, reason="no native build")
def test_native_helpers_agree_with_their_specification():
    host, rng = native.host(), random.Random(1)
    for _ in range(300):
        arguments = rng.randint(1, 10**5), rng.randint(2, 300), rng.uniform(1, 500), rng.choice(["exp", "step"])
        np.testing.assert_array_equal(host.longtail_counts(*arguments), profile_counts(*arguments))
    labels = np.random.default_rng(0).integers(0, 37, 5000)
    for found, expected in zip(host.group_by_class(labels, 40), group_by_class(labels, 40), strict=True):
        assert found.dtype == expected.dtype == np.int64
        np.testing.assert_array_equal(found, expected)


def test_result_is_the_same_without_a_native_build(monkeypatch):
    labels = np.arange(1000) % 7
    usual = longtail_indices(labels, 9)
    monkeypatch.setattr(native, "host", lambda: None)
    np.testing.assert_array_equal(usual, longtail_indices(labels, 9))


@pytest.mark.parametrize("n_max", [1, 49, 50, 97, 500])
def test_the_ratio_that_a_refusal_advises_is_possible(n_max):
    with pytest.raises(LtatError) as caught:
        longtail_counts(n_max, 10, n_max * 1.5)
    advised = {"choose 1": 1.0, f"choose a ratio below {n_max}": n_max * 0.999}
    ratio = advised[str(caught.value).partition("; ")[2]]
    assert longtail_counts(n_max, 10, ratio).min() >= 1
