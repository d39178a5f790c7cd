"""Accuracies against tables worked out by hand."""

import numpy as np
import pytest

from ltat.data import longtail_counts
from ltat.errors import LtatError
from ltat.evaluation import class_groups, summarise


def members(group: np.ndarray | None) -> list[int]:
    return np.flatnonzero(group).tolist()


@pytest.mark.parametrize(
    ("classes", "n_max", "ratio", "tail"), [(10, 5000, 50, [9]), (100, 500, 10, list(range(90, 100)))]
)
def test_the_tail_is_the_papers_tail(classes, n_max, ratio, tail):
    assert members(class_groups(classes, longtail_counts(n_max, classes, ratio))["tail"]) == tail


def test_tiny_imagenets_tail_is_its_last_twenty_classes():
    assert members(class_groups(200, longtail_counts(500, 200, 10))["tail"]) == list(range(180, 200))


def test_groups_split_at_100_and_20_training_images():
    groups = class_groups(6, [500, 101, 100, 20, 19, 1])
    assert (members(groups["many"]), members(groups["medium"]), members(groups["few"])) == ([0, 1], [2, 3], [4, 5])


def test_the_tail_follows_the_counts_not_the_labels():
    assert members(class_groups(3, [5, 900, 30])["tail"]) == [0]
    assert members(class_groups(2, [7, 7])["tail"]) == [1]  # of equals the later label, so that there is always one


def test_every_figure_of_a_small_table():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    correct = np.array([1, 1, 1, 0, 1, 0, 0, 0, 1], dtype=bool)
    found = summarise(correct, labels, 4, [200, 50, 10, 5])
    assert found["per_class"] == [75.0, 50.0, pytest.approx(100 / 3), None]
    assert found["overall"] == pytest.approx(500 / 9)
    assert found["balanced"] == pytest.approx((75 + 50 + 100 / 3) / 3)  # the class without test images is left out
    assert (found["many"], found["medium"], found["few"]) == (75.0, 50.0, pytest.approx(100 / 3))
    assert found["tail"] is None  # class 3 has no test image
    counts = {"overall": 9, "tail": 0, "many": 4, "medium": 2, "few": 3, "per_class": [4, 2, 3, 0]}
    assert found["n"] == counts


def test_the_accuracy_of_a_class_has_the_bits_of_the_mean_over_its_images():
    generator = np.random.default_rng(0)
    labels, correct = generator.integers(0, 97, 3000), generator.random(3000) < 0.6
    expected = [100.0 * float(correct[labels == c].mean()) for c in range(97)]
    assert summarise(correct, labels, 97)["per_class"] == expected


def test_balanced_accuracy_of_a_balanced_set_is_the_accuracy():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 8)
    found = summarise(rng.random(40) < 0.4, labels, 5, [9, 8, 7, 6, 5])
    assert found["balanced"] == pytest.approx(found["overall"])


def test_a_group_pools_its_images_and_does_not_average_its_classes():
    labels = np.array([0, 1, 1, 1])
    found = summarise(np.array([True, False, False, False]), labels, 2, [300, 200])
    assert found["many"] == 25.0 and found["balanced"] == 50.0


def test_without_training_counts_groups_are_unknown_not_zero():
    found = summarise(np.array([True]), np.array([0]), 2)
    assert [found[name] for name in ("tail", "many", "medium", "few")] == [None] * 4
    assert found["n"]["tail"] is None and found["overall"] == 100.0


def test_counts_of_another_number_of_classes_are_refused():
    with pytest.raises(LtatError, match="3 classes"):
        class_groups(3, [1, 2])
