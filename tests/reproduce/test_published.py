"""The published figures: a wrong cell would be a wrong target for everyone."""

import csv
from collections import Counter
from importlib import resources

import pytest

from ltat.reproduce.published import FIGURES, Published, published_checkpoints, published_rows

ROWS = published_rows()
CHECKPOINTS = {"best", "last", "unstated"}


def figures(table: str, method: str, checkpoint: str, **setting: object) -> tuple[float | None, ...]:
    row = published_checkpoints("Cho", table, method, **setting)[checkpoint]
    return tuple(row.figures.get(name) for name in FIGURES)


def test_the_file_comes_with_the_package_and_has_no_column_that_nobody_reads():
    text = resources.files("ltat.reproduce").joinpath("published.csv").read_text(encoding="utf-8")
    known = "source table dataset architecture ratio method checkpoint clean pgd20 aa tail_clean tail_pgd20"
    assert next(csv.reader(text.splitlines())) == [*known.split(), "doubtful", "doubt"]


def test_no_row_stands_twice():
    assert [key for key, n in Counter(row.key for row in ROWS).items() if n > 1] == []


def test_every_row_has_a_source_and_possible_figures():
    for row in ROWS:
        assert_possible(row)


def assert_possible(row: Published) -> None:
    assert all((row.source, row.table, row.dataset, row.architecture, row.method)) and row.checkpoint in CHECKPOINTS
    assert row.ratio is None or row.ratio >= 1
    assert row.figures and all(0 <= value <= 100 for value in row.figures.values()), row.key
    assert row.doubtful <= set(FIGURES) and bool(row.doubtful) == bool(row.doubt), row.key
    sound = {name: value for name, value in row.figures.items() if name not in row.doubtful}
    for weaker, stronger in (("clean", "pgd20"), ("pgd20", "aa"), ("tail_clean", "tail_pgd20")):
        assert sound.get(weaker, 100) >= sound.get(stronger, 0) or row.method.endswith("-sd"), row.key


def test_cells_are_those_of_the_papers():
    assert figures("Table 1", "self-distill", "best") == (70.81, 38.85, 34.32, 73.8, 36.9)
    assert figures("Table 2", "at-bsl", "last") == (45.48, 15.36, 14.07, 31.5, 9.1)
    assert figures("Table 5", "reat", "best", ratio=50) == (26.62, 13.73, 10.64, 9.2, 4.1)
    assert figures("Table 6", "balanced-teacher", "unstated") == (35.71, 14.94, None, 34.6, 14.1)
    assert figures("Table 10", "self-distill-mean", "best") == (46.35, 22.31, None, 38.38, 17.84)
    again = published_checkpoints("public re-run", "README", "at-bsl-aua", dataset="cifar10")["best"]
    assert again.figures == {"aa": 33.53} and "torchattacks" in again.doubt
    policy = published_checkpoints("public re-run", "README", "at-bsl-ra")["best"]
    assert policy.figures["aa"] == 33.76 and "weaker" in policy.doubt


@pytest.mark.parametrize(
    ("table", "method", "checkpoint", "doubtful"),
    [
        ("Table 1", "awp", "last", set(FIGURES)),
        ("Table 7", "awp", "best", set(FIGURES)),
        ("Table 4", "reat", "best", set(FIGURES)),
        ("Table 3", "self-distill", "last", {"clean"}),
    ],
)
def test_what_is_no_target_is_marked(table: str, method: str, checkpoint: str, doubtful: set[str]):
    assert published_checkpoints("Cho", table, method)[checkpoint].doubtful == doubtful


def test_table_5_repeats_the_last_checkpoint_in_its_best_columns():
    at_ten = published_checkpoints("Cho", "Table 5", "self-distill", ratio=10)
    assert at_ten["best"].figures == at_ten["last"].figures and at_ten["best"].doubtful and not at_ten["last"].doubtful
