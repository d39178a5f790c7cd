"""How cost grows with size: the exponent of a power law, and which exponents are faults."""

import math
from collections.abc import Mapping

SMALLEST_MIB = 2.0  # below this, peak memory is pages that come and go


def larger_half(costs: Mapping[float, float]) -> dict[float, float]:
    """The costs of the larger half of the sizes, at least two: constant overhead must not flatter an exponent."""
    sizes = sorted(costs)
    first = max(0, min(len(sizes) // 2, len(sizes) - 2))
    return {size: costs[size] for size in sizes[first:]}


def exponent(costs: Mapping[float, float]) -> float | None:
    """p of cost = k · size^p by least squares in log-log over the larger half; None below two points.

    Args:
        costs: by size; both above 0.
    """
    points = [(math.log(size), math.log(cost)) for size, cost in larger_half(costs).items() if cost > 0]
    if len(points) < 2:
        return None
    x_mean, y_mean = (sum(values) / len(points) for values in zip(*points, strict=True))
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / spread


def memory_exponent(costs: Mapping[float, float]) -> float | None:
    """The same of MiB; None where even the largest is not worth a figure."""
    return exponent(costs) if max(costs.values(), default=0.0) >= SMALLEST_MIB else None


def is_fault(found: float | None, limit: float, inevitable: float | None = None) -> bool:
    """Whether an exponent is above ``limit``, and by more than noise above that of the ``inevitable`` part."""
    return found is not None and found > max(limit, 0.0 if inevitable is None else inevitable + 0.1)
