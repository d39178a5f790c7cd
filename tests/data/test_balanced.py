from collections import Counter

import numpy as np
import pytest

from ltat.data import balanced_indices, balanced_sizes, longtail_counts
from ltat.errors import LtatError

COUNTS = [100, 57, 33, 20, 7]
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), COUNTS))


@pytest.mark.parametrize("gamma", ["ir/2", 1.5, 3.0, 14.3])
@pytest.mark.parametrize("remainder", ["no_replace", "replace"])
def test_every_class_has_exactly_m_images(gamma, remainder):
    drawn = balanced_indices(LABELS, gamma, 3, remainder=remainder)
    m = 50 if gamma == "ir/2" else int(gamma * 7 + 1e-9)
    assert drawn.dtype == np.int64
    assert np.bincount(LABELS[drawn]).tolist() == [m] * 5


@pytest.mark.parametrize("remainder", ["no_replace", "replace"])
def test_no_small_class_loses_an_image(remainder):
    copies = Counter(balanced_indices(LABELS, "ir/2", 1, remainder=remainder).tolist())
    for c, n in enumerate(COUNTS):
        mine = [copies[i] for i in np.flatnonzero(np.equal(LABELS, c))]
        if n <= 50:
            assert min(mine) >= 50 // n
        else:
            assert max(mine) == 1, "down-sampling repeats nothing"


def test_remainder_without_replacement_is_as_even_as_possible():
    copies = Counter(balanced_indices(LABELS, "ir/2", 1).tolist())
    for c, n in enumerate(COUNTS):
        if n <= 50:
            assert {copies[i] for i in np.flatnonzero(np.equal(LABELS, c))} <= {50 // n, -(-50 // n)}


def test_remainder_with_replacement_can_repeat_one_image():
    labels = np.repeat([0, 1], [38, 10])  # m = 19: one whole copy of class 1 and 9 more
    tallies = [
        max(Counter(balanced_indices(labels, seed=s, remainder="replace")[19:].tolist()).values()) for s in range(5)
    ]
    assert max(tallies) > 2


@pytest.mark.parametrize("ratio", [5, 10, 20, 50, 100])
@pytest.mark.parametrize(("n_max", "num_classes"), [(5000, 10), (500, 100)])
def test_half_the_ratio_gives_half_the_largest_class(n_max, num_classes, ratio):
    counts = longtail_counts(n_max, num_classes, ratio)
    assert balanced_sizes(counts).tolist() == [n_max // 2] * num_classes
    assert balanced_sizes(counts, gamma=counts.max() / counts.min() / 2).tolist() == [n_max // 2] * num_classes


def test_partial_balance_runs_from_natural_to_balanced():
    assert balanced_sizes(COUNTS, partial=0).tolist() == COUNTS
    assert balanced_sizes(COUNTS, partial=0.5).tolist() == [75, 54, 42, 35, 28]  # 53.5, 41.5, 28.5 round to even
    assert sorted(balanced_indices(LABELS, partial=0)) == list(range(len(LABELS)))


def test_draws_differ_by_seed_and_by_number_and_repeat_exactly():
    first = balanced_indices(LABELS, seed=1)
    assert first.tolist() == balanced_indices(LABELS, seed=1).tolist()
    assert first.tolist() != balanced_indices(LABELS, seed=2).tolist()
    assert first.tolist() != balanced_indices(LABELS, seed=1, draw=1).tolist()


def test_a_class_is_drawn_the_same_whatever_the_others_hold():
    labels = np.concatenate([LABELS[LABELS == 4], LABELS[LABELS != 4]])
    grown = np.concatenate([labels, [0] * 3])  # three more head images, m stays 7 * 3
    both = [balanced_indices(those, 3.0, 5) for those in (labels, grown)]
    np.testing.assert_array_equal(both[0][-21:], both[1][-21:])


@pytest.mark.parametrize(
    ("keywords", "fragment"),
    [
        ({"gamma": 0.0}, "gamma 0.0"),
        ({"gamma": float("nan")}, "gamma nan"),
        ({"gamma": "half"}, "'half'"),
        ({"remainder": "drop"}, "'drop'"),
        ({"partial": 1.5}, "1.5"),
        ({"num_classes": 6}, "class 5 has no image"),
        ({"num_classes": 4}, "label 4"),
    ],
)
def test_bad_argument_is_refused_by_value(keywords, fragment):
    with pytest.raises(LtatError, match=fragment):
        balanced_indices(LABELS, **keywords)


def test_tiny_gamma_still_gives_one_image():
    assert balanced_sizes([10, 2], gamma=0.1).tolist() == [1, 1]


@pytest.mark.parametrize("gamma", [1e300, 1e9])
def test_a_wild_gamma_is_refused_before_memory_is_asked_for(gamma):
    with pytest.raises(LtatError, match="smaller"):
        balanced_indices(np.repeat([0, 1], [500, 40]), gamma)
