"""The registry: every table and figure with runs, whose recipes exist and whose rows find their published figures."""

import pytest

from ltat.config.recipes import list_recipes
from ltat.errors import LtatError
from ltat.reproduce.registry import all_targets, find_target
from ltat.reproduce.targets import BASELINE, MAIN, Target

TARGETS = all_targets()
NAMES = [f"table{n}" for n in range(1, 11)] + [f"figure{n}" for n in (5, 6, 7, 8)]


def test_every_table_and_figure_of_the_main_paper_is_there():
    assert set(NAMES) <= set(TARGETS)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_a_target_has_known_recipes_and_rows_that_are_told_apart(target: Target):
    assert target.title and target.source and (target.cells or target.compute)
    assert {cell.recipe for cell in target.cells} <= set(list_recipes())
    assert len({(cell.group, cell.label) for cell in target.cells}) == len(target.cells)
    assert all(set(cell.published) <= set(target.checkpoints) for cell in target.cells)


@pytest.mark.parametrize("name", ["table1", "table2", "table3", "table4", "table5", "table7", "table8"])
def test_every_row_has_both_published_checkpoints(name: str):
    assert all(set(cell.published) == {"best", "last"} for cell in TARGETS[name].cells)


def test_the_main_method_and_the_baseline_that_is_best_in_print_come_first():
    ranks = {cell.label: cell.rank for cell in TARGETS["table1"].cells}
    assert ranks["self-distill"] == MAIN and ranks["REAT"] == BASELINE
    assert sorted(ranks.values()).count(BASELINE) == 1
    awp = next(cell for cell in TARGETS["table7"].cells if cell.label == "AWP")
    assert awp.rank > BASELINE  # its row is no target, so it is no best baseline either
    by_group = {(cell.group, cell.rank) for cell in TARGETS["table5"].cells}
    assert {(f"ratio {ratio}", rank) for ratio in (5, 10, 20, 50) for rank in (MAIN, BASELINE)} <= by_group


def test_the_defaults_of_the_figures_are_the_run_of_the_tables():
    cells = {cell.label: cell for cell in TARGETS["figure6"].cells}
    assert not cells["α = 10"].settings and not cells["γ = 5"].settings and cells["α = 1"].settings == {"kd.alpha": 1}


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(LtatError, match=r"'table11' to reproduce; choose one of table1, table2"):
        find_target("table11")
