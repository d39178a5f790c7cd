"""The theory of the tail's error: closed forms that are not the optimum's, checks that pass whatever they say."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from scipy.integrate import dblquad
from scipy.optimize import minimize_scalar
from sklearn.linear_model import LogisticRegression

from ltat.errors import LtatError
from ltat.theory import TwoClasses, estimate, theorem1
from ltat.theory.figures import write_accuracies, write_boundaries, write_errors
from ltat.theory.monte_carlo import draw

RADII = (0.0, 0.5)


@pytest.fixture(scope="module")
def small():
    return theorem1((1, 3, 10), samples=(500, 4_000), repeats=8)


def integrated_error(classes: TwoClasses, label: int, offset: float, radius: float) -> float:
    """The error of x₁ + x₂ + √2 b > 0 under one class: its density, over all inputs that a corner of the box fools."""
    corners = [a + b for a, b in itertools.product((-radius, radius), repeat=2)]
    boundary = -math.sqrt(2) * offset - (max(corners) if label < 0 else min(corners))
    normal = NormalDist(label * classes.eta)

    def inner(x1: float) -> tuple[float, float]:
        return (boundary - x1, 12.0) if label < 0 else (-12.0, boundary - x1)

    lower, upper = (lambda x1: inner(x1)[0]), (lambda x1: inner(x1)[1])
    return dblquad(lambda x2, x1: normal.pdf(x1) * normal.pdf(x2), -10, 10, lower, upper, epsabs=1e-10)[0]


@pytest.mark.parametrize("radius", RADII)
def test_errors_are_integrals_of_the_density(radius):
    classes = TwoClasses(5)
    offset = classes.offset(0.5)
    assert classes.tail_error(offset, radius) == pytest.approx(integrated_error(classes, -1, offset, radius), abs=1e-8)
    assert classes.head_error(offset, radius) == pytest.approx(integrated_error(classes, 1, offset, radius), abs=1e-8)


@pytest.mark.parametrize(("ratio", "features", "eta", "eps"), [(5, 2, 1.0, 0.5), (50, 7, 0.4, 0.1), (1.5, 1, 2.0, 1.9)])
@pytest.mark.parametrize("attacked", [False, True])
def test_no_other_offset_has_a_smaller_error(ratio, features, eta, eps, attacked):
    classes, normal, radius = TwoClasses(ratio, features, eta, eps), NormalDist(), eps if attacked else 0.0

    def error(offset: float) -> float:
        margin = math.sqrt(features) * (eta - radius)
        return (ratio * normal.cdf(-margin - offset) + normal.cdf(-margin + offset)) / (ratio + 1)

    best = minimize_scalar(error, bounds=(-20, 20), method="bounded", options={"xatol": 1e-9})
    assert classes.offset(radius) == pytest.approx(best.x, abs=1e-4)
    assert classes.error(classes.offset(radius), radius) == pytest.approx(best.fun, abs=1e-12)


def test_equal_weights_are_best_against_the_attack_too():
    classes, angles = TwoClasses(5), np.linspace(0.2, 1.3, 45)

    def error(angle: float) -> float:
        weights = np.array([math.cos(angle), math.sin(angle)])
        margin = float(weights.sum()) * (classes.eta - classes.eps)
        offset, normal = math.log(classes.ratio) / (2 * margin), NormalDist()
        return (classes.ratio * normal.cdf(-margin - offset) + normal.cdf(-margin + offset)) / (classes.ratio + 1)

    assert angles[np.argmin([error(angle) for angle in angles])] == pytest.approx(math.pi / 4, abs=0.02)


def test_logistic_regression_of_another_package_finds_the_offset():
    classes = TwoClasses(5)
    x, y = draw(classes, 100_000, seed=1)
    other = LogisticRegression(C=1e6).fit(x, y)
    offset = float(other.intercept_[0] / (other.coef_.mean() * math.sqrt(2)))
    assert offset == pytest.approx(classes.offset(0.0), abs=0.02)
    assert estimate(classes, 0.0, 100_000, seed=1).offset == pytest.approx(offset, abs=1e-3)


def test_adversarial_fitting_finds_the_robust_offset_and_not_the_natural_one():
    classes = TwoClasses(5)
    found = np.mean([estimate(classes, 0.5, 20_000, seed).offset for seed in range(5)])
    assert found == pytest.approx(classes.offset(0.5), abs=0.03)
    assert abs(found - classes.offset(0.0)) > 0.4


def test_the_theorem_holds_and_sampling_agrees(small):
    assert [check["claim"] for check in small["checks"] if not check["holds"]] == []
    assert len(small["checks"]) == 6 and len(small["rows"]) == 6
    equal = small["rows"][:2]
    assert equal[0]["tail_robust"]["closed"] == equal[1]["tail_robust"]["closed"]


@pytest.mark.parametrize(
    ("offset", "refuted"),
    [
        (lambda own, radius: math.log(own.ratio) / (2 * own._scores(0.0)), "for r > 1 the robust classifier"),
        (lambda own, radius: math.log(own.ratio) / own._scores(radius), "Monte-Carlo agrees"),
        (lambda own, radius: 0.1 + math.log(own.ratio) / (2 * own._scores(radius) + radius), "Monte-Carlo agrees"),
        (lambda own, radius: radius, "at r = 1 both classifiers are one"),
        (lambda own, radius: -math.log(own.ratio) / (2 * own._scores(radius)), "all four tail errors rise"),
    ],
)
def test_wrong_closed_forms_are_refuted(offset, refuted, monkeypatch):
    monkeypatch.setattr(TwoClasses, "offset", offset)
    checks = theorem1((1, 10), samples=(4_000,), repeats=8)["checks"]
    assert any(refuted in check["claim"] and not check["holds"] for check in checks)


def test_sampling_that_does_not_converge_is_refuted(monkeypatch):
    monkeypatch.setattr(
        "ltat.theory.theorem.estimate", lambda classes, radius, samples, seed: estimate(classes, radius, 500, seed)
    )
    checks = {check["claim"]: check["holds"] for check in theorem1((1, 3), samples=(500, 8_000), repeats=8)["checks"]}
    assert not checks["the deviation of Monte-Carlo falls as 1/√N"]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: TwoClasses(5, eps=1.0), "eps=1"),
        (lambda: TwoClasses(0.2), "give 1/0.2"),
        (lambda: TwoClasses(5, features=0), "features is 0"),
        (lambda: TwoClasses(float("nan")), "ratio is nan"),
        (lambda: estimate(TwoClasses(1e6), 0.0, 1_000), "none of the rare class"),
        (lambda: estimate(TwoClasses(2), 0.0, 10), "samples is 10"),
        (lambda: theorem1((2, 5)), "the first 1"),
        (lambda: theorem1((1, 5), repeats=1), "1 repeats"),
    ],
)
def test_wrong_numbers_are_refused(call, named):
    with pytest.raises(LtatError, match=named):
        call()


def test_pictures_are_the_same_bytes_each_time_and_show_what_they_are_of(tmp_path, small):
    pytest.importorskip("matplotlib")
    rows = [
        {"method": method, "ratio": ratio, "attack": attack, "overall": [50.0, 60.0], "tail": [10.0, 20.0]}
        for method in ("natural", "pgd-at")
        for ratio in (1, 50)
        for attack in ("clean", "pgd20")
    ]
    write_boundaries(tmp_path / "2.svg", (1, 5))
    write_errors(tmp_path / "3.svg", small)
    for name in ("4.svg", "again.svg"):
        write_accuracies(tmp_path / name, rows)
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert texts["4.svg"] == texts["again.svg"]
    assert ">r = 5<" in texts["2.svg"] and ">natural classifier<" in texts["2.svg"]
    assert ">robust classifier, standard error<" in texts["3.svg"]
    assert ">pgd-at, pgd20<" in texts["4.svg"] and ">tail<" in texts["4.svg"]
    with pytest.raises(LtatError, match="no finished run"):
        write_accuracies(tmp_path / "none.svg", [])
