"""Several ranks over gloo give what one process gives: every method, and what it sums over a batch."""

import pytest
import torch
from torch import Tensor

from tests.ranks.cases import cases, trained
from tests.ranks.launching import torchrun

NOT_EQUAL = "statistics of each share"
ALL = [case for case in cases() if case not in (NOT_EQUAL,)]
UNEVEN = ["at-bsl", "reat", "self-distill", "awp", "recomputed statistics", "l2 ball"]
TOLERANCE = 1e-12


@pytest.fixture(scope="module", params=[2, 3])
def ends(request, tmp_path_factory) -> dict[str, dict[str, Tensor]]:
    """What several ranks end with, by case: one launch for all of them."""
    file = tmp_path_factory.mktemp("ranks") / "ends.pt"
    names = [*ALL, NOT_EQUAL] if request.param == 2 else UNEVEN
    done = torchrun(request.param, "tests.ranks.worker", str(file), *names)
    assert done.returncode == 0, done.stderr
    loaded: dict[str, dict[str, Tensor]] = torch.load(file)
    return loaded


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Tensor]]:
    """What one process ends with, by case."""
    return {}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest value of its tensor."""
    assert one.keys() == other.keys()
    apart = ((one[name].double() - other[name].double()).abs().max() for name in one)
    largest = (value.double().abs().max().clamp(min=1e-12) for value in one.values())
    return max(float(a / b) for a, b in zip(apart, largest, strict=True))


def test_several_ranks_end_with_the_weights_of_one(ends, alone):
    failed = {}
    for case in ends.keys() - {NOT_EQUAL}:
        one = alone.setdefault(case, trained(case))
        apart = difference(one, ends[case])
        if not apart < TOLERANCE:
            failed[case] = apart
    assert not failed
