"""The rows of bench/results, read back: for every case the last complete measurement on each machine."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One measurement."""

    date: str
    hardware: str
    torch: str
    threads: int
    commit: str
    case: str
    candidate: str
    unit: str
    median: float
    p20: float
    p80: float
    bytes: int | None

    @property
    def on_gpu(self) -> bool:
        """Whether it was taken on a GPU."""
        return "NVIDIA" in self.hardware

    @property
    def run(self) -> tuple[str, ...]:
        """What the rows of one run have in common."""
        return self.date, self.torch, self.commit


@dataclass(frozen=True)
class Measured:
    """The rows of one case from one run, by candidate."""

    bench: str
    rows: dict[str, Row]

    @property
    def first(self) -> Row:
        """Any row: date, machine, threads and case are the same for all."""
        return next(iter(self.rows.values()))


def read_rows(file: Path) -> list[Row]:
    """All rows of a CSV, in the order in which they were written."""
    with file.open(newline="") as lines:
        return [_row(cells) for cells in csv.DictReader(lines)]


def _row(cells: dict[str, str]) -> Row:
    numbers = {name: float(cells[name]) for name in ("median", "p20", "p80")}
    text = {name: cells[name] for name in ("date", "hardware", "torch", "commit", "case", "candidate", "unit")}
    return Row(**text, **numbers, threads=int(cells["threads"]), bytes=int(cells["bytes"]) if cells["bytes"] else None)


def latest(bench: str, rows: Iterable[Row]) -> list[Measured]:
    """The last run of every (machine, threads, case), in the order of their first appearance.

    A case's candidates are compared within one run only, so a run that measured fewer of them replaces all.
    """
    runs: dict[tuple[str, int, str], dict[str, Row]] = {}
    for row in rows:
        key = (row.hardware, row.threads, row.case)
        found = runs.get(key, {})
        again = row.candidate in found or (found and next(iter(found.values())).run != row.run)
        runs[key] = {row.candidate: row} if again else found | {row.candidate: row}
    return [Measured(bench, found) for found in runs.values()]
