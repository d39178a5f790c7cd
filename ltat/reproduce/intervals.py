"""Confidence intervals of a figure and of a difference: over seeds where there are several, else over the images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ltat.sweeps.paired import paired_gain

NORMAL = 1.959963984540054
"""The quantile of the normal distribution for an interval of 95 %."""
SEEDS, IMAGES = "Student's t over seeds", "Wilson's over images"


@dataclass(frozen=True)
class Verdicts:
    """How many of ``n`` images stayed correct."""

    correct: int
    n: int

    @property
    def percent(self) -> float:
        """The accuracy."""
        return 100 * self.correct / self.n


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval, and what the interval covers.

    Attributes:
        value: the estimate.
        low: the lower limit.
        high: the upper limit.
        kind: :data:`SEEDS` or :data:`IMAGES`.
    """

    value: float
    low: float
    high: float
    kind: str


def accuracy_interval(seeds: Sequence[Verdicts]) -> Interval:
    """The mean accuracy over seeds in percent; at least one."""
    if len(seeds) == 1:
        return Interval(seeds[0].percent, *wilson(seeds[0]), IMAGES)
    return over_seeds([each.percent for each in seeds], [0.0] * len(seeds))


def difference_interval(seeds: Sequence[Verdicts], others: Sequence[Verdicts]) -> Interval:
    """The mean of ``seeds`` minus ``others``, pair by pair, in percent.

    One pair has the interval of Newcombe (1998, method 10), which takes the images of both for independent; since they
    are the same images, it is too wide rather than too narrow.
    """
    if len(seeds) > 1:
        return over_seeds([each.percent for each in seeds], [each.percent for each in others])
    (one,), (other,) = seeds, others
    (low, high), (other_low, other_high) = wilson(one), wilson(other)
    value = one.percent - other.percent
    below = math.hypot(one.percent - low, other_high - other.percent)
    above = math.hypot(high - one.percent, other.percent - other_low)
    return Interval(value, value - below, value + above, IMAGES)


def over_seeds(values: Sequence[float], others: Sequence[float]) -> Interval:
    """The mean difference of at least two pairs with Student's interval."""
    gain = paired_gain(values, others)
    assert gain.low is not None and gain.high is not None
    return Interval(gain.mean, gain.low, gain.high, SEEDS)


def wilson(verdicts: Verdicts) -> tuple[float, float]:
    """The limits of Wilson's (1927) interval of an accuracy, in percent."""
    n, p, z = verdicts.n, verdicts.correct / verdicts.n, NORMAL
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)
