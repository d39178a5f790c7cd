"""The gain of one setting over another, paired by seed, with its confidence interval."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Gain:
    """A mean difference with the limits of its confidence interval, which one pair alone does not have.

    Attributes:
        mean: of the differences.
        low: the lower limit.
        high: the upper limit.
    """

    mean: float
    low: float | None = None
    high: float | None = None


def paired_gain(values: Sequence[float], baseline: Sequence[float], level: float = LEVEL) -> Gain:
    """The mean of ``values`` minus ``baseline``, pair by pair, with the interval of Student's t.

    Args:
        values: one for each pair, at least one.
        baseline: as many.
        level: of the interval, between 0 and 1.
    """
    differences = [value - other for value, other in zip(values, baseline, strict=True)]
    mean, n = statistics.mean(differences), len(differences)
    if n == 1:
        return Gain(mean)
    from scipy.special import stdtrit  # noqa: PLC0415  (only a command that ends with a gain needs it)

    half = float(stdtrit(n - 1, (1 + level) / 2)) * statistics.stdev(differences) / math.sqrt(n)
    return Gain(mean, mean - half, mean + half)
