"""docs/scaling.md and its plot, from the rows of bench/scaling.py; written by bench/report.py."""

import ast
import math
from collections.abc import Iterable
from pathlib import Path

from bench._curves import Curve, curves
from bench._fits import is_fault
from bench.rows import Measured, Row

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scaling.md"
PLOT = ROOT / "bench" / "results" / "scaling.svg"
MEMORY, EXPONENT = " / memory", " / exponent"
COLUMNS = ("what", "from", "to", "time", "", "p", "memory", "p", "")
AXES = {
    "images": "Over the number of images",
    "classes": "Over the number of classes",
    "pixels": "Over the pixels of a side",
    "batch": "Over the images of a batch",
}
PANELS = [("time", "images"), ("memory", "images"), ("time", "classes"), ("time", "pixels"), ("time", "batch")]
INTRO = """# How cost grows

This page and its plot are generated from the rows of `bench/results/scaling.csv` (`python -m bench.report`);
`ltat bench scaling` measures them again.

{described}

The tables give the least time at the smallest and at the largest size that was measured, the peak of memory at the
largest, and the exponent p of both. NumPy's permutation reads and writes at random places of the whole list: where the
list outgrows a processor's cache its time jumps, and grows in proportion before and after. Evaluation keeps a verdict
of every image and the floats of one batch, so its memory may grow with exponent 0.5 at most.{left_out}

![Cost over size, both axes logarithmic](../bench/results/scaling.svg)
"""


def page(cases: list[Measured]) -> str:
    """The whole page."""
    described = ast.get_docstring(ast.parse((ROOT / "bench" / "scaling.py").read_text())) or ""
    by_machine = machines(cases)
    sentences = [*(missing_sizes(found) for found in by_machine.values()), missing_curves(by_machine)]
    left_out = "".join(f" {sentence}" for sentence in sentences if sentence)
    parts = [INTRO.format(described=described.partition("\n\n")[2], left_out=left_out)]
    for machine, found in by_machine.items():
        tables = [axis_part(axis, title, found) for axis, title in AXES.items()]
        parts.append(f"## {machine}\n\n" + "\n".join(filter(None, tables)))
    return "\n".join(parts)


def machines(cases: Iterable[Measured]) -> dict[str, dict[str, Measured]]:
    """The cases by their name, of each machine."""
    found: dict[str, dict[str, Measured]] = {}
    for case in cases:
        row = case.first
        machine = f"{row.hardware}, {row.threads} thread{'s' if row.threads > 1 else ''}, torch {row.torch}"
        found.setdefault(machine, {})[row.case] = case
    return found


def missing_sizes(found: dict[str, Measured]) -> str:
    """A sentence on the sizes that were left out for time."""
    missing = []
    for curve in curves():
        if curve.case in found:
            absent = [f"{size:,}" for size in curve.sizes if str(size) not in found[curve.case].rows]
            missing += [f"{curve.name} at {', '.join(absent)} ({curve.axis})"] if absent else []
    return f"Left out for their time: {'; '.join(missing)}." if missing else ""


def missing_curves(by_machine: dict[str, dict[str, Measured]]) -> str:
    """A sentence on the curves that have no rows."""
    missing = [c.case for c in curves() if all(c.case not in found for found in by_machine.values())]
    return f"Not measured yet: {', '.join(missing)}." if missing else ""


def axis_part(axis: str, title: str, found: dict[str, Measured]) -> str:
    """The table of one axis, or nothing."""
    rows = [curve_cells(curve, found) for curve in curves() if curve.axis == axis and curve.case in found]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    return f"### {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) if rows else ""


def curve_cells(curve: Curve, found: dict[str, Measured]) -> list[str]:
    """A table row: sizes, times, memory, exponents, and what is to be said of them."""
    times, peaks = found[curve.case].rows, found[curve.case + MEMORY].rows
    sizes = sorted(times, key=int)
    small, large = times[sizes[0]], times[sizes[-1]]
    time, memory = (exponent_of(curve.case, kind, found) for kind in ("time", "memory"))
    return [
        curve.name,
        f"{int(sizes[0]):,}",
        f"{int(sizes[-1]):,}",
        duration(small),
        duration(large),
        digits(time),
        f"{peaks[sizes[-1]].median:,.3g} MiB"
        if peaks[sizes[-1]].median < 100
        else f"{peaks[sizes[-1]].median:,.0f} MiB",
        digits(memory),
        remark(curve, time, memory, found),
    ]


def remark(curve: Curve, time: float | None, memory: float | None, found: dict[str, Measured]) -> str:
    """Fault, or why an exponent above the limit is none."""
    part = exponent_of(f"{curve.part} / {curve.axis}", "time", found) if curve.part else None
    if is_fault(time, curve.time_limit, part) or is_fault(memory, curve.memory_limit):
        return "**fault**"
    return "as the permutation in it" if is_fault(time, curve.time_limit) else ""


def exponent_of(case: str, kind: str, found: dict[str, Measured]) -> float | None:
    """The exponent of time or memory of a curve, if it has one."""
    rows = found[case + EXPONENT].rows if case + EXPONENT in found else {}
    return rows[kind].median if kind in rows else None


def digits(value: float | None) -> str:
    """An exponent with two digits after the point."""
    return "" if value is None else f"{value:.2f}".replace("-0.00", "0.00")


def mebibytes(value: float) -> str:
    """Whole ones from 100 on."""
    return f"{value:,.0f} MiB" if value >= 100 else f"{value:.3g} MiB"


def duration(row: Row) -> str:
    """Microseconds with a readable unit."""
    for size, name in ((1e6, "s"), (1e3, "ms")):
        if row.median >= size:
            return f"{row.median / size:.3g} {name}"
    return f"{row.median:.3g} µs"


def write_plot(cases: list[Measured], path: Path) -> None:
    """An SVG with a panel per axis: cost over size of each curve, on the machine with the most rows; matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure

    found = max(machines(cases).values(), key=len)
    with matplotlib.rc_context({"svg.hashsalt": "scaling", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(12, 15), layout="constrained")
        grid = figure.subplots(3, 2)
        for axes, (kind, axis) in zip(grid.flat, PANELS, strict=False):
            draw(axes, kind, axis, found)
        grid.flat[-1].set_axis_off()
        figure.savefig(path, format="svg", metadata={"Date": None})


def draw(axes, kind: str, axis: str, found: dict[str, Measured]) -> None:  # type: ignore[no-untyped-def]
    """One panel, with a dotted line of exponent 1."""
    suffix, scale, unit = ("", 1e-6, "seconds") if kind == "time" else (MEMORY, 1.0, "MiB")
    styles = [f"{mark}-" for mark in "osD^v<>pPX*hdH"]
    chosen = [curve for curve in curves() if curve.axis == axis and curve.case + suffix in found]
    highest = []
    for curve, style in zip(chosen, styles * 2, strict=False):
        rows = found[curve.case + suffix].rows
        points = sorted((int(size), row.median * scale) for size, row in rows.items())
        axes.plot(*zip(*points, strict=True), style, label=curve.name, markersize=3, linewidth=1)
        highest.append((curve.grows(points[-1][0]) / points[-1][1], points, curve))
    if highest:
        _, points, curve = min(highest, key=lambda entry: entry[0])
        (small, _), (large, cost) = points[0], points[-1]
        axes.plot(
            (small, large),
            (cost * curve.grows(small) / curve.grows(large), cost),
            ":",
            color="black",
            label="exponent 1",
        )
        axes.legend(frameon=False, fontsize=6, ncols=math.ceil(len(chosen) / 10))
    axes.set(xscale="log", yscale="log", xlabel=AXES[axis].removeprefix("Over the "), ylabel=unit)
