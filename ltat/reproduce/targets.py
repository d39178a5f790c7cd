"""What can be reproduced: a table or figure as rows to train, or a computation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltat.reproduce.published import Published

MAIN, BASELINE, OTHER = 0, 1, 2
"""The ranks of a row: of the main method, of its best baseline, of any other."""


@dataclass(frozen=True)
class Column:
    """A figure of a table.

    Attributes:
        title: its heading.
        attack: the attack of the evaluation, such as ``pgd20``.
        group: the classes, such as ``overall`` or ``tail``.
        published: the figure's name in ``published.csv``, if it is published.
    """

    title: str
    attack: str
    group: str = "overall"
    published: str = ""


COLUMNS = (
    Column("clean", "clean", published="clean"),
    Column("PGD-20", "pgd20", published="pgd20"),
    Column("AutoAttack", "autoattack", published="aa"),
    Column("tail, clean", "clean", "tail", "tail_clean"),
    Column("tail, PGD-20", "pgd20", "tail", "tail_pgd20"),
)
"""The columns of the tables of the main paper."""
LAST: Mapping[str, Any] = {"select.set": "none", "average.kind": "none"}
"""The settings of a row under a protocol of ours of which the network of the last epoch alone is looked at."""


@dataclass(frozen=True)
class Cell:
    """A row of a table: a setting to train, with the published figures.

    Attributes:
        label: the row's name in the table.
        recipe: name of the recipe.
        settings: on top of it, by dotted name.
        group: rows of one group are compared with each other, such as those of one imbalance ratio.
        rank: :data:`MAIN`, :data:`BASELINE` or :data:`OTHER`; the lower, the earlier a row runs.
        published: the published rows by checkpoint of the run's report: ``best``, ``last`` or ``teacher``.
    """

    label: str
    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""
    rank: int = OTHER
    published: Mapping[str, Published] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """A table or figure.

    Attributes:
        name: by which the command calls it, such as ``table1``.
        title: what it shows.
        source: the paper.
        cells: its rows, in the order of the table.
        columns: its figures.
        checkpoints: those of a run's report that it shows.
        seeds: training seeds of each row, unless the command says otherwise.
        note: a line for the page on what of it is ours.
        picture: draws the target's tree (:func:`ltat.reproduce.results.result_tree`) into an SVG, if it is a figure.
        compute: for a target without runs: writes its files into a folder and returns the lines to print.
        baseline: the label of the row over which the gain of every other row of its group is shown, or "".
    """

    name: str
    title: str
    source: str
    cells: Sequence[Cell] = ()
    columns: Sequence[Column] = COLUMNS
    checkpoints: Sequence[str] = ("best", "last")
    seeds: int = 1
    note: str = ""
    picture: Callable[[Path, Mapping[str, Any]], None] | None = None
    compute: Callable[[Path], Sequence[str]] | None = None
    baseline: str = ""
