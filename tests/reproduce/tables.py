"""A small table on real digits, with published figures that are made up."""

from collections.abc import Mapping
from typing import Any

from ltat.reproduce.published import Published
from ltat.reproduce.targets import BASELINE, MAIN, OTHER, Cell, Column, Target

QUICK: Mapping[str, Any] = {
    "data.name": "digits",
    "data.imbalance_ratio": 20.0,
    "train.epochs": 2,
    "train.device": "cpu",
    "train.batch_size": 64,
    "attack.steps": 1,
    "eval.attacks": ["clean", "pgd2"],
    "eval.n_examples": 40,
    "select.set": "none",
}
COLUMNS = (Column("clean", "clean", published="clean"), Column("tail, PGD-2", "pgd2", "tail", "tail_pgd20"))


def published(method: str, clean: float, tail: float, doubtful: tuple[str, ...] = (), doubt: str = "") -> Published:
    figures = {"clean": clean, "tail_pgd20": tail}
    return Published("made up", "Table 0", "digits", "small", 20.0, method, "last", figures, frozenset(doubtful), doubt)


def quick_cell(method: str, clean: float, rank: int = OTHER, **changes: Any) -> Cell:
    row = published(method, clean, clean / 2)
    settings = {**QUICK, "method": method}
    return Cell(
        **{
            "label": method,
            "recipe": "unified/digits",
            "settings": settings,
            "rank": rank,
            "published": {"last": row},
            **changes,
        }
    )


def table(*cells: Cell) -> Target:
    """A table whose main method stands last, as in print."""
    rows = cells or (
        quick_cell("natural", 60.0),
        quick_cell("pgd-at", 70.0, BASELINE),
        quick_cell("at-bsl", 80.0, MAIN),
    )
    return Target("table0", "digits", "made up", rows, COLUMNS, ("last",))
