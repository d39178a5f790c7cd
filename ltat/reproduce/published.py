"""The published figures, and what is doubtful about them: ``published.csv`` beside this file."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

FIGURES = ("clean", "pgd20", "aa", "tail_clean", "tail_pgd20")
"""Accuracies in percent: clean, under PGD-20, under AutoAttack, and the first two on the tail classes."""
SELF_DISTILLATION = "Cho, Lee, Kim, ICLR 2025"
TAET = "Wang et al., CVPR 2025"
IGDM = "Lee, Cho, Kim, ICLR 2025"


@dataclass(frozen=True)
class Published:
    """A row of a published table, of one checkpoint.

    Attributes:
        source: the paper, or who measured it.
        table: the table in it.
        dataset: the data set by its name in ltat.
        architecture: the network, by its name in ltat where it has one.
        ratio: the imbalance ratio; ``None`` where it is not stated.
        method: the last word of the recipe's name, such as ``at-bsl-ra``.
        checkpoint: ``best``, ``last`` or ``unstated``.
        figures: :data:`FIGURES` in percent, those that are there.
        doubtful: the figures that are no target.
        doubt: why not, in words.
    """

    source: str
    table: str
    dataset: str
    architecture: str
    ratio: float | None
    method: str
    checkpoint: str
    figures: Mapping[str, float]
    doubtful: frozenset[str]
    doubt: str

    @property
    def key(self) -> tuple[object, ...]:
        """What tells the row from all others."""
        return self.source, self.table, self.dataset, self.architecture, self.ratio, self.method, self.checkpoint


@cache
def published_rows() -> tuple[Published, ...]:
    """Every row of the file."""
    text = resources.files("ltat.reproduce").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(map(_row, csv.DictReader(text.splitlines())))


def _row(cells: dict[str, str]) -> Published:
    figures = {name: float(cells[name]) for name in FIGURES if cells[name]}
    doubtful = FIGURES if cells["doubtful"] == "all" else cells["doubtful"].split()
    return Published(
        **{name: cells[name] for name in ("source", "table", "dataset", "architecture", "method", "checkpoint")},
        ratio=float(cells["ratio"]) if cells["ratio"] else None,
        figures=figures,
        doubtful=frozenset(doubtful),
        doubt=cells["doubt"],
    )


def published_checkpoints(source: str, table: str, method: str, **setting: object) -> dict[str, Published]:
    """The rows of a method in a table by checkpoint; ``source`` is how the row's begins.

    ``setting`` narrows the choice by other attributes, such as ``ratio=50``.
    """
    found = [row for row in published_rows() if (row.table, row.method) == (table, method)]
    found = [row for row in found if row.source.startswith(source)]
    return {row.checkpoint: row for row in found if all(getattr(row, name) == value for name, value in setting.items())}


def as_last(rows: Mapping[str, Published]) -> dict[str, Published]:
    """The row of a checkpoint that is not stated, as that of the last one."""
    return {"last": rows["unstated"]} if "unstated" in rows else {}
