"""Whether the published order holds: intervals, pairs and the verdict."""

import pytest

from ltat.reproduce.intervals import IMAGES, SEEDS, Verdicts, accuracy_interval, difference_interval, wilson
from ltat.reproduce.ordering import CONTRADICTED, HOLDS, OPEN, Entry, ordering


def entry(label: str, published: float, *percent: float, n: int = 1000) -> Entry:
    return Entry(label, published, {seed: Verdicts(round(p * n / 100), n) for seed, p in enumerate(percent)})


def test_wilsons_interval_is_that_of_the_textbook():
    assert wilson(Verdicts(81, 263)) == pytest.approx((25.53, 36.62), abs=0.01)  # Newcombe (1998a), table I
    assert wilson(Verdicts(0, 40))[0] == 0 and wilson(Verdicts(40, 40))[1] == pytest.approx(100)


def test_newcombes_interval_is_that_of_the_textbook():
    found = difference_interval([Verdicts(56, 70)], [Verdicts(48, 80)])  # Newcombe (1998b), table II, method 10
    assert (found.low, found.high, found.kind) == (
        pytest.approx(5.24, abs=0.01),
        pytest.approx(33.39, abs=0.01),
        IMAGES,
    )


def test_several_seeds_have_students_interval():
    found = accuracy_interval([Verdicts(50, 100), Verdicts(52, 100), Verdicts(54, 100)])
    assert found.kind == SEEDS and found.value == 52
    assert found.high - found.value == pytest.approx(4.303 * 2 / 3**0.5, abs=0.01)  # t of 2 degrees of freedom
    paired = difference_interval([Verdicts(50, 100), Verdicts(60, 100)], [Verdicts(40, 100), Verdicts(50, 100)])
    assert (paired.low, paired.high) == (10, 10)  # the seeds' own spread cancels


def test_an_order_that_holds():
    found = ordering([entry("a", 30, 20), entry("b", 20, 15), entry("c", 10, 5)])
    assert found is not None and (found.verdict, found.tau, len(found.pairs)) == (HOLDS, 1.0, 3)


def test_a_reversal_within_its_interval_leaves_the_order_open():
    found = ordering([entry("a", 30, 20.0), entry("b", 29, 20.5)])
    assert found is not None and (found.verdict, found.tau) == (OPEN, -1.0)


def test_a_reversal_beyond_its_interval_contradicts():
    found = ordering([entry("a", 30, 10), entry("b", 20, 30), entry("c", 10, 5)])
    assert found is not None and found.verdict == CONTRADICTED and found.tau == pytest.approx(1 / 3)
    (against,) = [pair for pair in found.pairs if pair.contradicts]
    assert (against.above, against.below, against.published) == ("a", "b", 10)
    assert against.ours.value == pytest.approx(-20) and against.ours.high < 0


def test_only_seeds_that_both_have_are_compared():
    one = Entry("a", 30, {0: Verdicts(50, 100), 1: Verdicts(10, 100)})
    found = ordering([one, Entry("b", 20, {0: Verdicts(40, 100)})])
    assert found is not None and found.pairs[0].ours.value == 10
    assert ordering([one, Entry("b", 20, {7: Verdicts(40, 100)})]) is None


def test_rows_that_print_the_same_are_no_pair():
    assert ordering([entry("a", 30, 20), entry("b", 30, 10)]) is None and ordering([entry("a", 30, 20)]) is None
    tied = ordering([entry("a", 30, 20), entry("b", 20, 20)])
    assert tied is not None and (tied.verdict, tied.tau) == (OPEN, 0.0)
