"""The errors of a linear classifier on two Gaussian classes of unequal size (Cho, Lee and Kim, ICLR 2025, section 3).

    P(y = +1) = r/(r+1),   P(y = -1) = 1/(r+1),   x_k | y ~ N(ηy, 1) independent, k = 1 … n

By symmetry the best weights are equal, so that a classifier is an offset b to the score s(x) = Σ_k x_k / √n: it says +1
where s(x) + b > 0. Under y the score is N(√n η y, 1). An adversary who moves every x_k by at most ε moves the score by
at most √n ε, and the worst he can do is to take that much off the margin: the margin η becomes m = η − ε. The error at
margin m is

    r/(r+1) Φ(−√n m − b)  +  1/(r+1) Φ(−√n m + b)

and its derivative in b is zero where r φ(√n m + b) = φ(√n m − b), hence at b = ln r / (2 √n m). The natural classifier
has m = η there, the robust one m = η − ε: a smaller margin, so a larger offset towards the frequent class.
"""

import math
from dataclasses import dataclass

from scipy.special import ndtr

from ltat.arguments import as_number, as_whole
from ltat.errors import LtatError
from ltat.units import check_ratio


@dataclass(frozen=True)
class TwoClasses:
    """The data and the adversary.

    Attributes:
        ratio: r ≥ 1, the size of the frequent class +1 over that of the rare class -1.
        features: n ≥ 1.
        eta: η > 0, the distance of every feature's mean from zero, in its standard deviations.
        eps: ε in [0, η), how far the adversary moves each feature.

    Raises:
        LtatError: a number out of its range.
    """

    ratio: float
    features: int = 2
    eta: float = 1.0
    eps: float = 0.5

    def __post_init__(self) -> None:
        as_whole("features", self.features, 1)
        check_ratio("ratio", as_number("ratio", self.ratio, "give the large class over the small one, such as 5"))
        eta, eps = (as_number(name, getattr(self, name), "give a number") for name in ("eta", "eps"))
        if not 0 <= eps < eta:
            raise LtatError(f"eps={eps:g} is not from 0 to below eta={eta:g}; such an adversary can swap the classes")

    def offset(self, radius: float) -> float:
        """The offset b that is best against an adversary of this radius below η; 0 for the natural classifier."""
        return math.log(self.ratio) / (2 * self._scores(radius))

    def tail_error(self, offset: float, radius: float) -> float:
        """The share of the rare class that the classifier with this offset gets wrong at this radius."""
        return float(ndtr(-self._scores(radius) + offset))

    def head_error(self, offset: float, radius: float) -> float:
        """The same of the frequent class."""
        return float(ndtr(-self._scores(radius) - offset))

    def error(self, offset: float, radius: float) -> float:
        """The share of all images."""
        head, tail = self.head_error(offset, radius), self.tail_error(offset, radius)
        return (self.ratio * head + tail) / (self.ratio + 1)

    def _scores(self, radius: float) -> float:
        """√n (η − radius): the mean of a class's score after the attack."""
        return math.sqrt(self.features) * (self.eta - radius)
