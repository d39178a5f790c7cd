"""Index plans: every class its count, every image its turn, whatever the epoch."""

from fractions import Fraction

import numpy as np
import pytest

from ltat.data import BalancedPlan, ClassSamplingPlan, FixedPlan, ProgressivePlan, ShufflePlan, plan_from_file
from ltat.data.plans import exact_quotas
from ltat.errors import LtatError

COUNTS = [40, 20, 9, 4]
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))
N = len(LABELS)


def class_counts(positions):
    return np.bincount(LABELS[positions], minlength=4)


def largest_remainder(weights, n):
    """Hamilton's method in exact arithmetic."""
    total = sum(weights)
    wanted = [Fraction(w) * n / total for w in weights]
    seats = [int(w) for w in wanted]
    by_remainder = sorted(range(len(wanted)), key=lambda c: seats[c] - wanted[c])
    for c in by_remainder[: n - sum(seats)]:
        seats[c] += 1
    return seats


@pytest.mark.parametrize(
    ("power", "weights"),
    [(1.0, COUNTS), (0.0, [1, 1, 1, 1]), (0.5, [Fraction(n**0.5) for n in COUNTS])],
    ids=["natural", "class-balanced", "square-root"],
)
def test_class_sampling_gives_every_class_its_exact_count(power, weights):
    plan = ClassSamplingPlan(LABELS, 4, power, seed=3)
    for epoch in range(4):
        positions = plan.epoch(epoch)
        assert len(positions) == plan.size(epoch) == N
        assert class_counts(positions).tolist() == largest_remainder(weights, N)


def test_within_a_class_no_image_appears_twice_more_than_another():
    for epoch in range(5):
        uses = np.bincount(ClassSamplingPlan(LABELS, 4, 0.0, seed=0).epoch(epoch), minlength=N)
        for c in range(4):
            own = uses[c == LABELS]
            assert own.max() - own.min() <= 1


def test_every_epoch_draws_other_images_of_a_large_class():
    plan = ClassSamplingPlan(LABELS, 4, 0.0, seed=0)
    head = [set(epoch[LABELS[epoch] == 0].tolist()) for epoch in map(plan.epoch, range(4))]
    assert len(set(map(frozenset, head))) == 4


def test_natural_sampling_is_every_image_once():
    assert sorted(ClassSamplingPlan(LABELS, 4, 1.0, seed=0).epoch(7)) == list(range(N))


def test_progressive_sampling_moves_from_natural_to_balanced():
    plan = ProgressivePlan(LABELS, 4, epochs=10, seed=1)
    assert class_counts(plan.epoch(1)).tolist() == COUNTS
    for epoch in (1, 4, 6, 10):
        t = Fraction(epoch - 1, 10)
        weights = [(1 - t) * Fraction(n, N) + t * Fraction(1, 4) for n in COUNTS]
        assert class_counts(plan.epoch(epoch)).tolist() == largest_remainder(weights, N)
    tail = [class_counts(plan.epoch(epoch))[3] for epoch in range(1, 11)]
    assert tail == sorted(tail) and tail[-1] > 3 * tail[0]
    assert class_counts(plan.epoch(50)).max() - class_counts(plan.epoch(50)).min() <= 1  # beyond the last epoch


@pytest.mark.parametrize(
    "plan",
    [
        ShufflePlan(N, 1),
        ClassSamplingPlan(LABELS, 4, 0.5, seed=1),
        ProgressivePlan(LABELS, 4, epochs=3, seed=1),
        BalancedPlan(LABELS, 4, "ir/2", db_seed=0, seed=1, resample="per_epoch"),
    ],
    ids=lambda plan: type(plan).__name__,
)
def test_an_epoch_depends_on_nothing_but_its_number(plan):
    later = plan.epoch(5)
    for epoch in (0, 5, 2):
        plan.epoch(epoch)
    np.testing.assert_array_equal(plan.epoch(5), later)
    assert plan.epoch(4).tolist() != later.tolist()


@pytest.mark.parametrize(
    "plan",
    [
        lambda seed: ShufflePlan(N, seed),
        lambda seed: ClassSamplingPlan(LABELS, 4, 0.0, seed),
        lambda seed: ProgressivePlan(LABELS, 4, 10, seed),
        lambda seed: BalancedPlan(LABELS, 4, "ir/2", db_seed=0, seed=seed),
    ],
    ids=["shuffle", "class", "progressive", "balanced"],
)
def test_classes_come_mixed_and_each_seed_mixes_anew(plan):
    one, other = (plan(seed).epoch(1) for seed in (1, 2))
    assert one.tolist() != other.tolist()
    assert len(set(LABELS[one[:20]])) > 1 and len(set(LABELS[one[-20:]])) > 1


def test_quotas_sum_up_and_keep_whole_numbers_whole():
    shares = np.array([0.1, 0.2, 0.7])
    assert exact_quotas(shares, 10).tolist() == [1, 2, 7]
    for n in range(1, 60):
        quotas = exact_quotas(np.array([1, 1, 1]) / 3, n)
        assert quotas.sum() == n and quotas.max() - quotas.min() <= 1


def test_an_empty_class_cannot_be_sampled():
    with pytest.raises(LtatError, match="class 1 has no image"):
        ClassSamplingPlan(np.array([0, 0, 2]), 3, 0.5, seed=0).epoch(0)


def test_a_plan_file_is_served_in_its_order(tmp_path):
    np.save(tmp_path / "plan.npy", np.array([5, 5, 2]))
    plan = plan_from_file(tmp_path / "plan.npy", 6)
    assert isinstance(plan, FixedPlan) and plan.epoch(1).tolist() == plan.epoch(2).tolist() == [5, 5, 2]


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (np.array([0, 6]), r"plan\.npy: index 6 is outside the set of 6"),
        (np.array([-1]), "index -1"),
        (np.array([], dtype=np.int64), "holds no position"),
        (np.array([0.5]), "float64"),
        (np.array([[0]]), "2 dimensions"),
    ],
)
def test_a_plan_file_that_cannot_be_served_is_refused(tmp_path, content, fragment):
    np.save(tmp_path / "plan.npy", content)
    with pytest.raises(LtatError, match=fragment):
        plan_from_file(tmp_path / "plan.npy", 6)
    np.savez(tmp_path / "two.npz", a=np.arange(6), b=np.arange(6))
    with pytest.raises(LtatError, match="holds 2 arrays"):
        plan_from_file(tmp_path / "two.npz", 6)
    with pytest.raises(LtatError, match="nowhere"):
        plan_from_file(tmp_path / "nowhere.npy", 6)
