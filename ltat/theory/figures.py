"""The theory as pictures: the two boundaries in the plane, and the tail's errors over the ratio; needs matplotlib."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ltat.errors import LtatError
from ltat.files import replacing
from ltat.theory.closed_form import TwoClasses
from ltat.theory.monte_carlo import draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {"natural": "#4477aa", "robust": "#ee6677"}  # distinct for colour-blind readers too
STYLES = {"standard": "-", "robust": "--"}
GROUPS = ("overall", "tail")
SHOWN_RATIOS = (1, 2, 5)
SHOWN_SAMPLES = 200
EDGE = 4.0  # of the plane that is shown
CURVE = 200  # points


@contextmanager
def svg(path: Path, width: float, height: float) -> Iterator["Figure"]:
    """A figure of that size in inches, written as an SVG; the same figure gives the same bytes.

    Raises:
        LtatError: the file cannot be written.
    """
    import matplotlib  # noqa: PLC0415  (an optional package)
    from matplotlib.figure import Figure  # noqa: PLC0415

    with matplotlib.rc_context({"svg.hashsalt": "ltat", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with replacing(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def write_boundaries(path: Path, ratios: Sequence[float] = SHOWN_RATIOS, eta: float = 1.0, eps: float = 0.5) -> None:
    """Figure 2: draws of both classes with two features, and where either classifier divides the plane, per ratio."""
    with svg(path, 3.2 * len(ratios), 3.4) as figure:
        for axes, ratio in zip(figure.subplots(1, len(ratios), squeeze=False)[0], ratios, strict=True):
            classes = TwoClasses(ratio, 2, eta, eps)
            x, y = draw(classes, SHOWN_SAMPLES, seed=0)
            axes.plot(*x[y > 0].T, ".", color="#999999", markersize=3, label="frequent class")
            axes.plot(*x[y < 0].T, "x", color="black", markersize=4, label="rare class (tail)")
            for name, radius in (("natural", 0.0), ("robust", eps)):
                ends = np.array([-EDGE, EDGE])
                line = -np.sqrt(2) * classes.offset(radius) - ends  # where x₁ + x₂ = −√2 b
                axes.plot(ends, line, color=COLOURS[name], label=f"{name} classifier")
            axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), aspect="equal", title=f"r = {ratio:g}", xlabel="x₁")
        figure.axes[0].set_ylabel("x₂")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)


def write_errors(path: Path, result: Mapping[str, Any]) -> None:
    """Figure 3: the tail's errors over the ratio, the closed forms as lines and Monte-Carlo as points.

    Args:
        path: the file.
        result: of ``theorem1``.

    Raises:
        LtatError: the file cannot be written.
    """
    setting, rows = result["setting"], result["rows"]
    ratios = np.geomspace(1, max(row["ratio"] for row in rows), CURVE)
    with svg(path, 5.5, 4.0) as figure:
        axes = figure.subplots()
        for name, colour in COLOURS.items():
            own = [row for row in rows if row["classifier"] == name]
            for error, style in STYLES.items():
                line = [closed_tail_error(ratio, name, error, setting) for ratio in ratios]
                axes.plot(ratios, line, style, color=colour, label=f"{name} classifier, {error} error")
                points = [row[f"tail_{error}"] for row in own]
                axes.errorbar(
                    [row["ratio"] for row in own],
                    [point["mean"] for point in points],
                    [2 * point["se"] for point in points],
                    fmt="o",
                    color=colour,
                    markersize=3,
                )
        axes.set(ylabel="error on the tail", ylim=(0, 1))
        label_ratios(axes, rows)
        axes.legend(frameon=False)


def closed_tail_error(ratio: float, classifier: str, error: str, setting: Mapping[str, Any]) -> float:
    """The closed form of one line of :func:`write_errors`."""
    classes = TwoClasses(ratio, setting["features"], setting["eta"], setting["eps"])
    offset = classes.offset(classes.eps if classifier == "robust" else 0.0)
    return classes.tail_error(offset, classes.eps if error == "robust" else 0.0)


def write_accuracies(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Figure 4: accuracy of natural and adversarial training over the ratio, clean and attacked, a panel per group.

    Args:
        path: the file.
        rows: each with ``"method"``, ``"ratio"``, ``"attack"`` and, for each of ``GROUPS``, its accuracies in percent,
            one per seed; of at most two methods and two attacks.

    Raises:
        LtatError: no rows, or the file cannot be written.
    """
    if not rows:
        raise LtatError("there is no finished run to draw; carry out the runs of figure4 first")
    methods, attacks = (list(dict.fromkeys(row[name] for row in rows)) for name in ("method", "attack"))
    lines = [
        (method, attack, colour, style)
        for method, colour in zip(methods, COLOURS.values(), strict=False)
        for attack, style in zip(attacks, STYLES.values(), strict=False)
    ]
    with svg(path, 4.2 * len(GROUPS), 3.8) as figure:
        for axes, group in zip(figure.subplots(1, len(GROUPS)), GROUPS, strict=True):
            for method, attack, colour, style in lines:
                found = [
                    (row["ratio"], row[group]) for row in rows if (row["method"], row["attack"]) == (method, attack)
                ]
                means = [(ratio, np.mean(seeds)) for ratio, seeds in sorted(found)]
                axes.plot(*zip(*means, strict=True), style, color=colour, label=f"{method}, {attack}")
                seeds = [(ratio, value) for ratio, values in found for value in values]
                axes.plot(*zip(*seeds, strict=True), ".", color=colour, markersize=3)
            label_ratios(axes, rows, group)
        figure.axes[0].set_ylabel("accuracy in percent")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)


def label_ratios(axes: Any, rows: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """A logarithmic axis with the ratios of the rows, and nothing between them."""
    ratios = sorted({row["ratio"] for row in rows})
    axes.set(xscale="log", xlabel="imbalance ratio r", title=title)
    axes.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    axes.minorticks_off()
