"""Why adversarial training costs the rare class more: two Gaussian classes, in closed form and by sampling."""

from ltat.theory.closed_form import TwoClasses
from ltat.theory.monte_carlo import Estimate, estimate
from ltat.theory.theorem import Check, theorem1

__all__ = ["Check", "Estimate", "TwoClasses", "estimate", "theorem1"]
