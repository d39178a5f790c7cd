"""The same errors by sampling: logistic regression, fitted naturally or adversarially, on drawn data.

Adversarial training of a linear classifier needs no search for the attack: the worst x' for (w, b) is x − ε y sign(w),
which takes ε‖w‖₁ off the margin y(w·x + b).
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from ltat.arguments import as_whole
from ltat.errors import LtatError
from ltat.seeding import numpy_generator
from ltat.theory.closed_form import TwoClasses

STREAM = "theory"


@dataclass(frozen=True)
class Estimate:
    """A fitted classifier and its errors on data that it has not seen.

    Attributes:
        offset: b over the weights' mean times √n: the offset of the score s(x) in ``closed_form``.
        tail_standard, tail_robust: share of the rare class that is wrong, without and with the attack.
        head_standard, head_robust: the same of the frequent class.
    """

    offset: float
    tail_standard: float
    tail_robust: float
    head_standard: float
    head_robust: float


def estimate(classes: TwoClasses, radius: float, samples: int, seed: int = 0) -> Estimate:
    """Fit on ``samples`` draws against an adversary of ``radius`` (0: natural), and test on as many of each class.

    The attack of the test is of radius ``classes.eps``. Equal arguments give equal numbers.

    Raises:
        LtatError: fewer than 100 samples, or none of the rare class.
    """
    samples = as_whole("samples", samples, 100)
    x, y = draw(classes, samples, seed)
    weights, bias = fit(x, y, radius)
    generator = numpy_generator(seed, f"{STREAM} test")
    errors = {}
    for name, label in (("head", 1.0), ("tail", -1.0)):
        margins = label * (label * classes.eta * weights.sum() + generator.standard_normal(x.shape) @ weights + bias)
        errors[f"{name}_standard"] = float((margins <= 0).mean())
        errors[f"{name}_robust"] = float((margins <= classes.eps * np.abs(weights).sum()).mean())
    return Estimate(offset=float(bias / (weights.mean() * np.sqrt(classes.features))), **errors)


def draw(classes: TwoClasses, samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features float64 [N, n] and labels +1 or -1, float64 [N]: N/(r+1) of the rare class, rounded, and the rest.

    Raises:
        LtatError: so few samples that the rare class has none.
    """
    rare = round(samples / (classes.ratio + 1))
    if not rare:
        raise LtatError(f"{samples} samples at ratio {classes.ratio:g} have none of the rare class; draw more")
    y = np.append(np.ones(samples - rare), -np.ones(rare))
    noise = numpy_generator(seed, f"{STREAM} train").standard_normal((samples, classes.features))
    return classes.eta * y[:, None] + noise, y


def fit(x: np.ndarray, y: np.ndarray, radius: float) -> tuple[np.ndarray, float]:
    """Weights [n] and bias of least mean log(1 + exp(−margin)) over the worst inputs within ``radius``."""

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights = parameters[:-1]
        worst = x - radius * y[:, None] * np.sign(weights)
        margins = y * (worst @ weights + parameters[-1])
        pull = -y * expit(-margins) / len(y)
        return float(np.logaddexp(0, -margins).mean()), np.append(pull @ worst, pull.sum())

    start = np.append(x[y > 0].mean(0) - x[y < 0].mean(0), 0.0)
    found = minimize(loss, start, jac=True, method="BFGS").x
    return found[:-1], float(found[-1])
