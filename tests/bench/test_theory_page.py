"""docs/theory.md says what the rows in bench/results/theory say, and those are of today's theory."""

import json

import pytest

from bench import _theory_page
from ltat.reproduce.registry import find_target
from ltat.reproduce.theory import accuracies
from ltat.theory import TwoClasses
from ltat.theory.theorem import Case

THEOREM, TRAINED = (
    json.loads((_theory_page.RESULTS / f"{name}.json").read_text()) for name in ("theorem1", "figure4-digits")
)


def test_the_page_is_that_of_the_rows():
    assert _theory_page.PAGE.read_text() == _theory_page.page()


def test_the_closed_forms_of_the_rows_are_those_of_the_code():
    setting = {name: THEOREM["setting"][name] for name in ("features", "eta", "eps")}
    for row in THEOREM["rows"]:
        radius = setting["eps"] if row["classifier"] == "robust" else 0.0
        case = Case(TwoClasses(row["ratio"], **setting), row["classifier"], radius)
        assert [row[name]["closed"] for name in _theory_page.ERRORS] == pytest.approx(case.closed.tolist(), rel=1e-12)
    assert all(check["holds"] for check in THEOREM["checks"])


def test_the_trained_rows_are_those_of_the_target():
    cells = {(cell.label, cell.group): dict(cell.settings) for cell in find_target("figure4-digits").cells}
    rows = {(row["label"], row["group"]): row["settings"] for row in TRAINED["rows"]}
    assert rows.keys() == cells.keys()
    assert all(own.items() <= cells[key].items() for key, own in rows.items())  # what is added since was the recipe's
    shown = accuracies(TRAINED)
    assert {row["attack"] for row in shown} == {"clean", "PGD-20"} and {row["method"] for row in shown} == {
        "natural",
        "pgd-at",
    }
    for name in ("figure2", "figure3", "figure4-digits"):
        assert (_theory_page.RESULTS / f"{name}.svg").exists() and f"{name}.svg" in _theory_page.page()


def test_a_claim_that_fails_and_a_run_that_is_missing_change_the_page():
    refuted = json.loads(json.dumps(THEOREM))
    refuted["checks"][0]["holds"] = False
    assert "- **Does not hold**: at r = 1" in "\n".join(_theory_page.theorem_part(refuted))
    fewer = {**TRAINED, "rows": TRAINED["rows"][:-1]}
    assert "\n".join(_theory_page.trained_part(fewer)) != "\n".join(_theory_page.trained_part(TRAINED))
