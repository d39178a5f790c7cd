import numpy as np
import pytest

from ltat.data import holdout_indices, stratified_subset
from ltat.errors import LtatError

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [100, 41, 6, 2]))


def test_parts_are_disjoint_whole_and_in_proportion():
    train, val = holdout_indices(LABELS, 0.1, 0, 4)
    assert sorted([*train, *val]) == list(range(len(LABELS)))
    assert np.bincount(LABELS[val], minlength=4).tolist() == [10, 4, 1, 1]


def test_no_class_vanishes_from_training():
    train, val = holdout_indices(LABELS, 0.99, 0, 4)
    assert np.bincount(LABELS[train], minlength=4).min() >= 1
    assert np.bincount(LABELS[val], minlength=4).min() >= 1


def test_split_depends_on_the_seed_alone():
    one, same, other = (holdout_indices(LABELS, 0.2, seed, 4)[1].tolist() for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(
    ("labels", "fraction", "num_classes", "fragment"),
    [
        ([0, 0, 1], 0.5, 2, "class 1 has 1 training image"),
        ([0, 0, 1, 1], 0.5, 3, "class 2 has 0 training image"),
        ([0, 0, 1, 1], 0.0, 2, "fraction 0.0"),
        ([0, 0, 1, 1], 1.0, 2, "fraction 1.0"),
        ([0, 0, 1, 1], float("nan"), 2, "fraction nan"),
    ],
)
def test_impossible_holdout_is_refused(labels, fraction, num_classes, fragment):
    with pytest.raises(LtatError, match=fragment):
        holdout_indices(np.array(labels), fraction, 0, num_classes)


@pytest.mark.parametrize("n", [1, 3, 4, 8, 12, 60, 149])
def test_sample_is_as_even_as_the_classes_allow(n):
    chosen = stratified_subset(LABELS, n, 4)
    counts = np.bincount(LABELS[chosen], minlength=4)
    sizes = np.bincount(LABELS)
    assert len(set(chosen.tolist())) == n
    assert chosen.tolist() == sorted(chosen.tolist())
    short = counts < sizes  # only exhausted classes may stay behind the others
    if short.any():
        assert counts.max() - counts[short].min() <= 1


@pytest.mark.parametrize(("n", "classes"), [(1, [9]), (2, [4, 9]), (3, [3, 6, 9]), (5, [1, 3, 5, 7, 9])])
def test_a_sample_smaller_than_the_classes_has_tail_classes(n, classes):
    labels = np.repeat(np.arange(10), 4)
    assert labels[stratified_subset(labels, n)].tolist() == classes
    assert labels[stratified_subset(labels, 10 + n)].tolist() == sorted([*range(10), *classes])


def test_sample_takes_the_first_images_of_each_class():
    assert stratified_subset(np.array([0, 0, 1, 0, 1, 2]), 4).tolist() == [0, 2, 4, 5]


@pytest.mark.parametrize("n", [0, -1, 150])
def test_impossible_sample_is_refused(n):
    with pytest.raises(LtatError, match=f"{n} examples"):
        stratified_subset(LABELS, n)


def test_a_class_of_one_image_is_reported_how_to_train_without_a_selection():
    with pytest.raises(LtatError, match=r"class 1 has 1 training image.*select\.set=none"):
        holdout_indices(np.array([0, 0, 1]), 0.1, 0, 2)


def test_samples_and_parts_are_those_that_sorting_gives():
    generator = np.random.default_rng(1)
    for classes in (1, 3, 30):
        labels = generator.integers(0, classes, 200)
        turn = np.array([np.sum(labels[:k] == labels[k]) for k in range(200)])
        order = np.lexsort((labels, turn))
        for n in (1, 7, 100, 199, 200):
            whole, last = (order[test(turn[order], turn[order[n - 1]])] for test in (np.less, np.equal))
            wanted = n - len(whole)
            spread = last[len(last) - 1 - np.arange(wanted) * len(last) // wanted]
            assert stratified_subset(labels, n, classes + 2).tolist() == sorted([*whole, *spread])
        train, val = holdout_indices(np.append(labels, np.arange(classes)), 0.3, 0, classes)
        assert train.tolist() == sorted(set(range(200 + classes)) - set(val.tolist()))
