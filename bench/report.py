"""docs/performance.md, scaling.md, theory.md, results.md and the README's table. Run: python -m bench.report.

They are made from bench/results, and none is edited by hand: the descriptions are the benches' docstrings, and the
targets are those of bench/targets.py.
"""

import ast
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bench import BENCHES
from bench.rows import Measured, Row, latest, read_rows
from bench.targets import TARGETS, Target, gb_per_s

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"
SCALING = "scaling"  # has a page of its own
BEGIN, END = "<!-- from bench/results: python -m bench.report -->", "<!-- to here -->"
BASELINES = ("plain", "eager", "dataloader-v2", "import torch", "twin")  # a table's ratios refer to the first it has
COUNTED = ("MiB", "KiB", "messages")  # units that are no speed
INTRO = """# Performance

Every number here stands as a row in `bench/results`, with its machine, versions and commit; this page is generated from
them (`python -m bench.report`). `ltat bench` measures everything again, `ltat bench NAME` one bench, and
`python -m bench.gpu OUT` all of it on a GPU machine. How time and memory grow with images, classes, pixels and batch
is on a page of its own, [scaling.md](scaling.md).

How it is measured: the candidates of a case take turns in every round, so that a machine that slows down slows all of
them, and a ratio is taken within one run only. The tables give the median and the 20th and 80th percentile of the
rounds; compilation and warm-up calls are not counted. Inputs are random, never zeros. For
the single operations glibc keeps what is freed, or the eager candidates would be charged for pages that come and go;
whole attacks, steps and epochs run as they do for a user. GPU times are CUDA events'. GPU times of single operations
are the device's alone: their launches queue up behind a kernel that waits, or the time would be the host's. *speed* is
relative to the case's plain or eager candidate; rows in which we lose are here too.
"""


def main() -> None:
    """Write the pages, the plot and the README's table."""
    from bench import (  # the first needs ltat; the tables must not, on a machine that lacks its packages
        _results_page,
        _scaling_page,
        _theory_page,
    )

    measured = read_all(ROOT / "bench" / "results")
    PAGE.write_text(page(measured))
    _theory_page.PAGE.write_text(_theory_page.page())
    _results_page.PAGE.write_text(_results_page.page())
    README.write_text(with_table(README.read_text(), measured))
    if SCALING in measured:
        _scaling_page.PAGE.write_text(_scaling_page.page(measured[SCALING]))
        _scaling_page.write_plot(measured[SCALING], _scaling_page.PLOT)


def read_all(folder: Path) -> dict[str, list[Measured]]:
    """The latest rows of every bench that has any."""
    files = {name: folder / f"{name}.csv" for name in BENCHES}
    return {name: latest(name, read_rows(file)) for name, file in files.items() if file.exists()}


def page(measured: dict[str, list[Measured]]) -> str:
    """The whole of docs/performance.md."""
    parts = [INTRO, targets_part("Targets on a CPU", measured, on_gpu=False)]
    parts += [targets_part("Targets on one H200", measured, on_gpu=True)]
    parts += [bench_part(name, cases) for name, cases in measured.items() if name != SCALING]
    return "\n".join(parts)


def targets_part(title: str, measured: dict[str, list[Measured]], on_gpu: bool) -> str:
    """The targets of a kind of machine, met, missed, or not measured."""
    rows = [
        [*target_cells(target, measured), verdict(target, measured)] for target in TARGETS if target.on_gpu == on_gpu
    ]
    return f"## {title}\n\n" + table(("what", "target", "measured", ""), rows)


def target_cells(target: Target, measured: dict[str, list[Measured]]) -> list[str]:
    """What, the limit and the number."""
    found = find(target, measured)
    bound = f"{'≤' if target.at_most else '≥'} {target.limit:g}{target.unit}"
    value = f"{target.value(found.rows):.2f}{target.unit}" if found else "not measured"
    return [target.what, bound, value]


def verdict(target: Target, measured: dict[str, list[Measured]]) -> str:
    """Met, or by how much it is missed."""
    found = find(target, measured)
    if found is None:
        return ""
    if target.met(found.rows):
        return "met"
    return f"missed by {abs(target.value(found.rows) - target.limit):.2f}{target.unit}"


def find(target: Target, measured: dict[str, list[Measured]]) -> Measured | None:
    """The newest rows with the candidates of a target."""
    fitting = [
        case
        for case in measured.get(target.bench, [])
        if case.first.case == target.case
        and case.first.on_gpu == target.on_gpu
        and target.threads in (None, case.first.threads)
        and set(target.needs) <= case.rows.keys()
    ]
    return max(fitting, key=lambda case: case.first.date, default=None)


def bench_part(name: str, cases: Sequence[Measured]) -> str:
    """The part of one bench: its docstring, and a table per machine."""
    described = ast.get_docstring(ast.parse((ROOT / "bench" / f"{name}.py").read_text())) or ""
    parts = [f"## {name}\n\n{described}\n"]
    for machine, group in grouped(cases, machine_line).items():
        rows = [cells for case in group for cells in case_rows(case)]
        columns = ("case", "candidate", "median", "20–80 %", "speed", "GB/s")
        used = [k for k in range(len(columns)) if k < 5 or any(row[k] for row in rows)]
        parts.append(f"{machine}\n\n" + table([columns[k] for k in used], [[row[k] for k in used] for row in rows]))
    return "\n".join(parts)


def machine_line(case: Measured) -> str:
    """The machine and date of a measurement, and the command that repeats it."""
    row = case.first
    device = " --device cuda" if row.on_gpu else ""
    threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
    label = f"{row.hardware}, {threads}, torch {row.torch}, commit {row.commit}, {row.date}"
    return f"**{label}** (`ltat bench {case.bench}{device} --threads {row.threads}`)"


def case_rows(case: Measured) -> list[list[str]]:
    """A table row per candidate; the speed is relative to the case's baseline."""
    base = next((case.rows[name] for name in BASELINES if name in case.rows), case.first)
    return [
        [
            row.case if row is case.first else "",
            row.candidate,
            shown(row.median, row.unit),
            f"{shown(row.p20, row.unit)} – {shown(row.p80, row.unit)}",
            "" if row.unit in COUNTED else f"{speed(row, base):.2f}×",
            f"{gb_per_s(row):.1f}" if row.bytes else "",
        ]
        for row in case.rows.values()
    ]


def speed(row: Row, base: Row) -> float:
    """The ratio to the baseline; below 1 is worse."""
    return row.median / base.median if row.unit == "images/s" else base.median / row.median


def shown(value: float, unit: str) -> str:
    """A number with a readable unit."""
    if unit != "us":
        return f"{value:,.0f} {unit}"
    for size, name in ((1e6, "s"), (1e3, "ms")):
        if value >= size:
            return f"{value / size:.3g} {name}"
    return f"{value:.3g} µs"


def with_table(readme: str, measured: dict[str, list[Measured]]) -> str:
    """The README with the headline targets between its two marks; unchanged without marks."""
    if BEGIN not in readme or END not in readme:
        return readme
    headlines = [target for target in TARGETS if target.headline and find(target, measured)]
    rows = [[*target_cells(target, measured), verdict(target, measured)] for target in headlines]
    before, rest = readme.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n\n{table(('what', 'target', 'measured', ''), rows)}\n{END}{after}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def grouped(cases: Iterable[Measured], key: Callable[[Measured], str]) -> dict[str, list[Measured]]:
    """The cases by their key, in the order of first appearance."""
    groups: dict[str, list[Measured]] = {}
    for case in cases:
        groups.setdefault(key(case), []).append(case)
    return groups


if __name__ == "__main__":
    main()
