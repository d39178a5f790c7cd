"""docs/theory.md, from bench/results/theory; written by bench/report.py.

The rows are what `ltat reproduce theorem1` and `ltat reproduce figure4-digits` write.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "theory.md"
RESULTS = ROOT / "bench" / "results" / "theory"
ERRORS = ("tail_standard", "tail_robust", "head_standard", "head_robust")
COLUMNS = ("clean", "PGD-20", "tail, clean", "tail, PGD-20")
INTRO = """# Why adversarial training costs the rare class more

This page is generated from the rows in `bench/results/theory` (`python -m bench.report`). `ltat reproduce theorem1`,
`figure2`, `figure3` and `figure4-digits` make rows and pictures again; `figure4` is the paper's own setting, on
CIFAR-10-LT ([reproduce.md](reproduce.md)). The theory is that of section 3 of Cho, Lee and Kim (ICLR 2025), derived
here anew.

## Two Gaussian classes

The frequent class y = +1 is r times as large as the rare one, y = -1. Each of n features is drawn from N(ηy, 1), and an
adversary moves each by at most ε < η. By symmetry the best weights are equal, so that a classifier is an offset b to
the score s = Σ x_k / √n, which is N(√n η y, 1). The adversary takes √n ε off the score's distance from the boundary:
the margin that is left is m = η − ε. With Φ the normal distribution function,

    error of the rare class = Φ(−√n m + b)        error of the frequent class = Φ(−√n m − b)

and their mean, weighted by r and 1, is least at b = ln r / (2 √n m). The *natural* classifier is best at m = η, the
*robust* one at m = η − ε. Its margin is smaller, so its offset is larger: for r > 1 it gives the rare class the larger
error, attacked or not, and the frequent class the smaller one. At r = 1 both are one classifier.

![Draws of both classes, and both boundaries, at ratios 1, 2 and 5](../bench/results/theory/figure2.svg)
"""
MONTE_CARLO = """
## Closed form and Monte-Carlo

Logistic regression, fitted naturally or against the worst x' = x − ε y sign(w), on {samples:,} samples and tested on as
many of each class; n = {features}, η = {eta:g}, ε = {eps:g}. Errors in percent: closed form, and in brackets the mean
of {repeats} repetitions with its standard error.
"""
PICTURE = """
![The tail's errors over the ratio](../bench/results/theory/figure3.svg)
"""
EMPIRICAL = """
## Trained networks

Natural against adversarial training (`pgd-at`) over the imbalance ratio: {title}, trained and attacked with ℓ∞ radius
{eps:g}, a quarter of that of the other digits runs, as the paper's 2/255 is of 8/255. Last checkpoint; accuracy in
percent with its 95 % interval ({kinds}; with one seed it does not cover the noise of training). The tail is the rarest
class, {tail} test images, so its figures are rough.

![Accuracy over the ratio, overall and tail](../bench/results/theory/figure4-digits.svg)
"""


THEORY_SAYS = (
    "The theorem has adversarial training below at every ratio above 1, attacked or not: it compares two linear "
    "classifiers at their optimum, and networks differ in more than an offset."
)


def page() -> str:
    """The whole page."""
    theorem, trained = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("theorem1", "figure4-digits"))
    return "\n".join([INTRO.rstrip("\n"), *theorem_part(theorem), *trained_part(trained)]) + "\n"


def theorem_part(theorem: Mapping[str, Any]) -> Iterator[str]:
    """The claims and the errors."""
    yield MONTE_CARLO.format(**theorem["setting"])
    yield "| r | classifier | offset b | " + " | ".join(name.replace("_", ", ") for name in ERRORS) + " |"
    yield "|---:|---|---:|" + "---|" * len(ERRORS)
    for row in theorem["rows"]:
        cells = " | ".join(error_cell(row[name]) for name in ERRORS)
        yield f"| {row['ratio']:g} | {row['classifier']} | {row['offset']:.3f} | {cells} |"
    yield ""
    for check in theorem["checks"]:
        yield f"- {'Holds' if check['holds'] else '**Does not hold**'}: {check['claim']} ({check['detail']})."
    yield PICTURE.rstrip("\n")


def error_cell(error: Mapping[str, float]) -> str:
    """Closed form (Monte-Carlo ± standard error)."""
    closed, mean, se = (100 * error[name] for name in ("closed", "mean", "se"))
    return f"{closed:.2f} ({mean:.2f} ± {se:.2f})"


def trained_part(tree: Mapping[str, Any]) -> Iterator[str]:
    """Accuracies of the trained networks, and what the tail's say."""
    rows = [row for row in tree["rows"] if all(figure(row, name)["ours"] for name in COLUMNS)]
    kinds = sorted({figure(row, name)["ours"]["kind"] for row in rows for name in COLUMNS})
    tail = next(iter(figure(rows[0], "tail, clean")["verdicts"].values()))["n"]
    title = tree["title"].partition(": ")[2]
    yield EMPIRICAL.format(title=title, eps=rows[0]["settings"]["attack.eps"], kinds=" or ".join(kinds), tail=tail)
    yield f"| ratio | method | seeds | {' | '.join(COLUMNS)} |"
    yield "|---:|---|---:|" + "---|" * len(COLUMNS)
    for row in rows:
        cells = " | ".join(accuracy_cell(figure(row, name)["ours"]) for name in COLUMNS)
        seeds = len(figure(row, "clean")["verdicts"])
        yield f"| {row['settings']['data.imbalance_ratio']:g} | {row['label']} | {seeds} | {cells} |"
    yield ""
    yield f"{said(rows, 'tail, clean', 'clean')}\n{said(rows, 'tail, PGD-20', 'attacked')}\n{THEORY_SAYS}"


def figure(row: Mapping[str, Any], column: str) -> Mapping[str, Any]:
    """A figure of the last checkpoint."""
    return row["figures"]["last"][column]


def accuracy_cell(ours: Mapping[str, float]) -> str:
    """The accuracy and its interval."""
    return f"{ours['value']:.1f} ({ours['low']:.1f} to {ours['high']:.1f})"


def said(rows: list[Mapping[str, Any]], column: str, tail: str) -> str:
    """At which ratios adversarial training is better or worse on a tail, and whether the rows can tell."""
    tails: dict[float, dict[str, Mapping[str, float]]] = {}
    for row in rows:
        tails.setdefault(row["settings"]["data.imbalance_ratio"], {})[row["label"]] = figure(row, column)["ours"]
    pairs = {ratio: (own["natural"], own["pgd-at"]) for ratio, own in sorted(tails.items()) if len(own) == 2}
    better = [ratio for ratio, (plain, hard) in pairs.items() if hard["value"] > plain["value"]]
    worse = [ratio for ratio, (plain, hard) in pairs.items() if hard["value"] < plain["value"]]
    apart = [r for r, (plain, hard) in pairs.items() if hard["low"] > plain["high"] or hard["high"] < plain["low"]]
    return (
        f"On the {tail} tail adversarial training is above natural training at {named(better)} and below it at "
        f"{named(worse)}; the intervals of the two are apart at {named(apart)}."
    )


def named(ratios: list[float]) -> str:
    """``ratio 5, 20``, or ``no ratio``."""
    return f"ratio {', '.join(f'{ratio:g}' for ratio in ratios)}" if ratios else "no ratio"
