"""Several ranks over gloo give what one process gives: every method, and what it sums over a batch."""

import pytest
import torch

from ltat.methods import METHODS
from ltat.ranks import ALONE
from tests.ranks.cases import Ends, all_ends, cases, norm_ends
from tests.ranks.forking import run_ranks

NOT_EQUAL = "statistics of each share"
ALL = [case for case in cases() if case not in (NOT_EQUAL,)]
THREE = [*METHODS, "awp", "recomputed statistics", "l2 ball"]
FOUR = ["reat", "self-distill", "recomputed statistics"]
TOLERANCES = {2: 1e-12, 3: 1e-7, 4: 1e-12}  # three times the gradient of fp32 logits is rounded, two and four are not


@pytest.fixture(scope="module")
def alone() -> dict[str, Ends]:
    """What one process ends with, by case."""
    return all_ends(ALONE, ALL)


def difference(one: Ends, other: Ends) -> float:
    """The largest difference, relative to the largest value of its tensor."""
    assert one.keys() == other.keys()
    apart = ((one[name].double() - other[name].double()).abs().max() for name in one)
    largest = (value.double().abs().max().clamp(min=1e-12) for value in one.values())
    return max(float(a / b) for a, b in zip(apart, largest, strict=True))


@pytest.mark.parametrize(("size", "names"), [(2, [*ALL, NOT_EQUAL]), (3, THREE), (4, FOUR)])
def test_several_ranks_end_with_the_weights_of_one(size, names, alone, tmp_path):
    ends = run_ranks(size, tmp_path, all_ends, names)
    apart = {case: difference(alone[case], ends[case]) for case in names if case != NOT_EQUAL}
    assert not {case: value for case, value in apart.items() if not value < TOLERANCES[size]}


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 0.02)]
)
def test_a_batch_norm_over_shares_is_that_of_the_whole_batch(dtype, tolerance, tmp_path):
    assert difference(norm_ends(ALONE, dtype), run_ranks(2, tmp_path, norm_ends, dtype)) < tolerance
