"""The figures of a sweep, from the reports of its runs: mean and standard deviation over seeds."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ltat.evaluation.report import COLUMNS
from ltat.sweeps.plans import RunPlan
from ltat.sweeps.state import read_report

CHECKPOINT = "last"
CHECKPOINTS = ("best", "last", "raw-best", "raw-last")
"""Those of a student, in the order of a report; the raw ones are there beside an average."""
WIDTH = 7  # of "99.99 ±", so that no figure is cut in two


@dataclass
class Row:
    """The figures of one setting.

    Attributes:
        runs: the names of its finished runs.
        figures: by attack and group, the accuracies in percent of the runs, in their order; ``None`` where the group
            has no images.
    """

    runs: list[str] = field(default_factory=list)
    figures: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)


def collect(plans: Iterable[RunPlan], checkpoint: str = CHECKPOINT) -> dict[str, Row]:
    """The figures of a checkpoint, one of :data:`CHECKPOINTS` or ``teacher``, of each run that reports it, by row."""
    rows: dict[str, Row] = {}
    for plan in plans:
        report = (read_report(plan.folder) or {}).get(checkpoint)
        if report is not None:
            add(rows.setdefault(plan.row, Row()), plan.name, report)
    return rows


def add(row: Row, name: str, report: Mapping[str, Any]) -> None:
    """Add the figures of one run, an entry of its ``report.json``."""
    row.runs.append(name)
    for attack, figures in report.items():
        if isinstance(figures, dict) and "overall" in figures:
            for group in COLUMNS:
                row.figures.setdefault(attack, {}).setdefault(group, []).append(figures.get(group))


def to_json(rows: Mapping[str, Row]) -> dict[str, Any]:
    """The figures as a tree for ``json.dumps``."""
    return {name: {"runs": row.runs, "figures": row.figures} for name, row in rows.items()}


def render(rows: Mapping[str, Row], title: str = "Accuracy in percent, mean ± standard deviation") -> Table:
    """A row for each attack and setting, a column for each group of classes that has figures.

    ``balanced`` has none where it is ``overall``, as on a balanced test set.
    """
    attacks = list(dict.fromkeys(attack for row in rows.values() for attack in row.figures))
    figures = [own for row in rows.values() for own in row.figures.values()]
    groups = [group for group in COLUMNS if any(value is not None for own in figures for value in own[group])]
    if all(alike(own["overall"], own["balanced"]) for own in figures):
        groups = [group for group in groups if group != "balanced"]
    table = Table(title=title, box=box.HORIZONTALS, show_edge=False, pad_edge=False, padding=0)
    table.add_column("attack", no_wrap=True, min_width=max(map(len, attacks), default=0))
    table.add_column("run", overflow="fold")
    table.add_column("n", justify="right", no_wrap=True, min_width=2)
    for group in groups:
        table.add_column(group, justify="right", min_width=max(len(group), WIDTH))  # a narrow terminal wraps at the ±
    for attack in attacks:
        for name, row in rows.items():
            if attack in row.figures:
                table.add_row(
                    attack, Text(name), str(len(row.runs)), *(cell(row.figures[attack][group]) for group in groups)
                )
        table.add_section()
    return table


def alike(values: Sequence[float | None], others: Sequence[float | None]) -> bool:
    """Whether two lists of accuracies differ by rounding alone."""
    pairs = zip(values, others, strict=True)
    return all(a == b or (a is not None and b is not None and math.isclose(a, b)) for a, b in pairs)


def cell(values: Sequence[float | None]) -> str:
    """Mean and, from two values on, the sample standard deviation."""
    there = [value for value in values if value is not None]
    if not there:
        return "–"
    spread = f" ± {statistics.stdev(there):.2f}" if len(there) > 1 else ""
    return f"{statistics.mean(there):.2f}{spread}"
