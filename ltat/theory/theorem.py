"""Theorem 1, checked: what the closed forms claim, and that sampling agrees with them."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ltat.errors import LtatError
from ltat.theory.closed_form import TwoClasses
from ltat.theory.monte_carlo import estimate

RATIOS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
SAMPLES = (1_000, 4_000, 16_000)
REPEATS = 20
CLASSIFIERS = ("natural", "robust")
ERRORS = ("tail_standard", "tail_robust", "head_standard", "head_robust")
TAIL = {"tail_standard": "without an attack", "tail_robust": "under attack"}
SIGMAS = 4.5  # of 48 comparisons by Student's t with 19 degrees of freedom, one in 80 sets has a larger one by chance
SPREAD = 2.0  # by which √N times the mean deviation may differ between numbers of samples


@dataclass(frozen=True)
class Check:
    """A claim, whether it holds, and the figures it rests on."""

    claim: str
    holds: bool
    detail: str


def theorem1(
    ratios: Sequence[float] = RATIOS,
    *,
    features: int = 2,
    eta: float = 1.0,
    eps: float = 0.5,
    samples: Sequence[int] = SAMPLES,
    repeats: int = REPEATS,
) -> dict[str, Any]:
    """Closed form and Monte-Carlo at each ratio, and the claims of the theorem.

    Args:
        ratios: r, rising, from 1 on; the paper's picture has 1, 2 and 5.
        features: n.
        eta: η.
        eps: ε of the robust classifier and of the attack.
        samples: numbers of samples N, rising; the rows are of the last one.
        repeats: independent repetitions at each ratio and N, at least 2.

    Returns:
        JSON values: ``"setting"``, ``"rows"`` (one per ratio and classifier: the offset and, for each error, closed
        form, mean of the repetitions and its standard error), ``"deviation"`` (for each N the root mean square of
        estimate minus closed form over all errors, and √N times it), and ``"checks"``, as :class:`Check`.

    Raises:
        LtatError: a number out of range, see :class:`TwoClasses` and :func:`estimate`.
    """
    if len(ratios) < 2 or ratios[0] != 1 or list(ratios) != sorted(set(ratios)):
        raise LtatError(f"the ratios are {list(ratios)}; give at least two, rising, the first 1")
    if repeats < 2 or not samples:
        raise LtatError(f"{repeats} repeats and {len(samples)} numbers of samples give no error; take 2 or more, and 1")
    cases = [
        Case(TwoClasses(ratio, features, eta, eps), name, radius)
        for ratio in ratios
        for name, radius in zip(CLASSIFIERS, (0.0, eps), strict=True)
    ]
    found = {count: [case.sampled(count, repeats) for case in cases] for count in sorted(samples)}
    rows = [case.row(errors, max(samples)) for case, errors in zip(cases, found[max(samples)], strict=True)]
    deviations = [deviation(count, cases, errors) for count, errors in found.items()]
    return {
        "setting": {"features": features, "eta": eta, "eps": eps, "samples": max(samples), "repeats": repeats},
        "rows": rows,
        "deviation": deviations,
        "checks": [asdict(check) for check in (*claims(rows), agreement(rows), rate(deviations))],
    }


@dataclass(frozen=True)
class Case:
    """A classifier, the best one at ``radius``, on classes of one ratio."""

    classes: TwoClasses
    name: str
    radius: float

    @property
    def offset(self) -> float:
        """Of the score, in closed form."""
        return self.classes.offset(self.radius)

    @property
    def closed(self) -> np.ndarray:
        """The errors in the order of ``ERRORS``, float64 [4]."""
        of = (self.classes.tail_error, self.classes.head_error)
        return np.array([error(self.offset, radius) for error in of for radius in (0.0, self.classes.eps)])

    def sampled(self, samples: int, repeats: int) -> np.ndarray:
        """Estimates of the same, float64 [repeats, 4]."""
        found = [estimate(self.classes, self.radius, samples, seed) for seed in range(repeats)]
        return np.array([[getattr(each, name) for name in ERRORS] for each in found])

    def row(self, estimates: np.ndarray, samples: int) -> dict[str, Any]:
        """Closed form, and mean and standard error of the estimates [repeats, 4] from this many samples."""
        finest = 1 / (samples * len(estimates))  # where no sample at all is wrong, the mean is no surer than that
        means = estimates.mean(0)
        errors = np.maximum(estimates.std(0, ddof=1) / math.sqrt(len(estimates)), finest)
        columns = zip(ERRORS, self.closed.tolist(), means.tolist(), errors.tolist(), strict=True)
        return {
            "ratio": self.classes.ratio,
            "classifier": self.name,
            "offset": self.offset,
            **{name: {"closed": closed, "mean": mean, "se": se} for name, closed, mean, se in columns},
        }


def deviation(samples: int, cases: Sequence[Case], found: Sequence[np.ndarray]) -> dict[str, float]:
    """How far an estimate from this many samples lies from the closed form."""
    apart = [errors - case.closed for case, errors in zip(cases, found, strict=True)]
    rms = float(np.sqrt(np.mean(np.square(apart))))
    return {"samples": samples, "rms": rms, "times_root": rms * math.sqrt(samples)}


def claims(rows: Sequence[dict[str, Any]]) -> list[Check]:
    """What the closed forms say: equal at r = 1, worse for the robust classifier's tail above, rising with r."""
    natural, robust = ([each for each in rows if each["classifier"] == name] for name in CLASSIFIERS)
    gaps = [
        {name: hard[name]["closed"] - plain[name]["closed"] for name in TAIL}
        for plain, hard in zip(natural, robust, strict=True)
    ]
    rises = [
        after[name]["closed"] - before[name]["closed"]
        for own in (natural, robust)
        for before, after in pairwise(own)
        for name in TAIL
    ]
    least = {name: min(gap[name] for gap in gaps[1:]) for name in TAIL}
    return [
        Check(
            "at r = 1 both classifiers are one",
            not any(gaps[0].values()),
            f"their tail errors differ by {max(map(abs, gaps[0].values())):.1g}",
        ),
        *(
            Check(
                f"for r > 1 the robust classifier has the larger error on the tail {words}",
                least[name] > 0,
                f"by {least[name]:.4f} or more at r = {natural[1]['ratio']:g} and above",
            )
            for name, words in TAIL.items()
        ),
        Check("all four tail errors rise with r", min(rises) > 0, f"by {min(rises):.4f} or more from one ratio on"),
    ]


def agreement(rows: Sequence[dict[str, Any]]) -> Check:
    """Whether the means over the repetitions agree with the closed forms."""
    most = max(abs(each[name]["mean"] - each[name]["closed"]) / each[name]["se"] for each in rows for name in ERRORS)
    return Check(
        "Monte-Carlo agrees with the closed forms",
        most < SIGMAS,
        f"the largest of {len(rows) * len(ERRORS)} differences is {most:.1f} standard errors",
    )


def rate(deviations: Sequence[dict[str, float]]) -> Check:
    """Whether the deviation of an estimate falls as 1/√N."""
    roots = [each["times_root"] for each in deviations]
    return Check(
        "the deviation of Monte-Carlo falls as 1/√N",
        max(roots) < SPREAD * min(roots),
        "√N times it is " + ", ".join(f"{each['times_root']:.2f} at N = {each['samples']:,}" for each in deviations),
    )
