"""docs/results.md says what the rows in bench/results/reproduce say, and those are of today's targets."""

import json

import pytest

from bench import _results_page
from ltat.reproduce.registry import find_target

FILES = sorted(_results_page.RESULTS.glob("*.json"))


def test_the_page_is_that_of_the_rows():
    assert _results_page.PAGE.read_text() == _results_page.page()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_rows_are_those_of_the_target(file):
    tree, target = json.loads(file.read_text()), find_target(file.stem)
    assert [(row["label"], row["recipe"]) for row in tree["rows"]] == [(own.label, own.recipe) for own in target.cells]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_figure_is_that_of_its_counts(file):
    for row in json.loads(file.read_text())["rows"]:
        for own in row["figures"].values():
            for figure in own.values():
                shares = [100 * each["correct"] / each["n"] for each in figure["verdicts"].values()]
                if shares:
                    assert figure["ours"]["value"] == pytest.approx(sum(shares) / len(shares))
