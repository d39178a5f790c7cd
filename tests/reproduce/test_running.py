"""The runs of a table: in the order of what they tell, within the budget, again where they stopped, past a failure."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ltat.reproduce import running
from ltat.reproduce.planning import Place, in_order, plan_target
from ltat.reproduce.registry import find_target
from ltat.reproduce.running import carry_out, sorted_runs
from ltat.reproduce.scales import SCALES
from ltat.sweeps import Interrupted, Phase, RunPlan, SweepReporter
from tests.reproduce.stubs import Stub
from tests.reproduce.tables import QUICK, quick_cell, table

SEEDS = 2
TAUGHT = {**QUICK, "method": "self-distill", "teacher.epochs": 1}


def quiet() -> SweepReporter:
    return SweepReporter(Console(file=io.StringIO()))


@pytest.fixture
def plans(tmp_path: Path) -> list[RunPlan]:
    return in_order(plan_target(table(), Place(tmp_path, SCALES["paper"]), SEEDS))


def methods(names: list[str], plans: list[RunPlan]) -> list[tuple[str, int]]:
    by_name = {plan.name: plan for plan in plans}
    return [(by_name[name].settings["method"], by_name[name].settings["seed"]["train"]) for name in names]


ORDER = [(method, seed) for seed in range(SEEDS) for method in ("at-bsl", "pgd-at", "natural")]


def test_the_main_method_and_its_best_baseline_come_first_and_further_seeds_last(plans: list[RunPlan], tmp_path: Path):
    stub = Stub()
    states, spent = carry_out(plans, stub, tmp_path, reporter=quiet())
    assert methods(stub.ran, plans) == ORDER and not spent
    assert {state.phase for state in states.values()} == {Phase.FINISHED}


def test_groups_are_told_apart_one_after_the_other(tmp_path: Path):
    planned = plan_target(find_target("table5"), Place(tmp_path, SCALES["paper"], tmp_path), 1)
    names = [plan.name.removeprefix("ltat-sd-c100-") for plan in in_order(planned)]
    assert names[:4] == [
        "ir50-rn18-self-distill-s0",
        "ir50-rn18-robal-s0",
        "ir20-rn18-self-distill-s0",
        "ir20-rn18-robal-s0",
    ]
    assert len(names) == len(set(names)) == 16


def test_rows_of_the_same_settings_are_one_run(tmp_path: Path):
    planned = plan_target(find_target("figure6"), Place(tmp_path, SCALES["paper"], tmp_path), 1)
    assert len(in_order(planned)) == len(planned) - 1  # α = 10 and γ = 5 are both the default


def test_the_budget_stops_between_two_steps_and_the_next_call_goes_on(
    plans: list[RunPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock = [0.0]
    monkeypatch.setattr(running.time, "monotonic", lambda: clock[0])

    def tick(plan: RunPlan) -> None:
        clock[0] += 10

    first = Stub(on_run=tick)
    states, spent = carry_out(plans, first, tmp_path, end=25.0, reporter=quiet())
    assert spent and first.interrupted == 1 and methods(first.ran, plans) == ORDER[:3]
    assert [state.phase for state in states.values()].count(Phase.FINISHED) == 3
    second = Stub(on_run=tick)
    states, spent = carry_out(plans, second, tmp_path, end=1000.0, reporter=quiet())
    assert not spent and not second.interrupted and methods(second.ran, plans) == ORDER[3:]
    assert {state.phase for state in states.values()} == {Phase.FINISHED}


def test_a_run_that_is_stopped_loses_a_minute_at_most(plans: list[RunPlan]):
    assert {plan.settings["train"]["checkpoint_minutes"] for plan in plans} == {1.0}


def test_a_budget_that_ends_with_the_last_run_is_not_spent(plans: list[RunPlan], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(running.time, "monotonic", lambda: 0.0)
    assert carry_out(plans[:1], Stub(), tmp_path, end=1.0, reporter=quiet())[1] is False


def test_ctrl_c_is_no_budget(plans: list[RunPlan], tmp_path: Path):
    def press(plan: RunPlan) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        carry_out(plans, Stub(on_run=press), tmp_path, end=float("inf"), reporter=quiet())


def test_a_failed_run_is_recorded_and_the_others_follow(plans: list[RunPlan], tmp_path: Path):
    stub = Stub(failing=[plans[0].name])
    states, _ = carry_out(plans, stub, tmp_path, reporter=quiet())
    assert states[plans[0].name].phase is Phase.FAILED and states[plans[0].name].error == "planted failure"
    assert [state.phase for state in states.values()].count(Phase.FINISHED) == len(plans) - 1
    again = Stub()
    carry_out(plans, again, tmp_path, reporter=quiet())
    assert again.ran == [plans[0].name]


def test_no_run_is_tried_in_advance_so_that_one_that_cannot_start_stops_no_other(
    plans: list[RunPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ltat.sweeps.running.check_plans", lambda plans: pytest.fail("the sweep tries runs"))
    carry_out(plans, Stub(), tmp_path, reporter=quiet())


def test_a_shared_teacher_comes_just_before_its_first_student(tmp_path: Path):
    def plan(name: str, teacher: RunPlan | None = None) -> RunPlan:
        return RunPlan(name, tmp_path / name, {}, teacher=teacher)

    one, two = (replace(plan(f"teacher-{n}"), only_teacher=True) for n in (1, 2))
    runs = [plan("a"), plan("b", one), plan("c", one), plan("d", two)]
    ordered = sorted_runs([one, two, *reversed(runs)], ["a", "b", "c", "d"])
    assert [each.name for each in ordered] == ["a", "teacher-1", "b", "c", "teacher-2", "d"]


def test_the_teachers_of_later_seeds_wait_for_the_students_of_the_first(tmp_path: Path):
    students = [
        quick_cell("self-distill", 60.0, label=f"α = {alpha}", settings={**TAUGHT, "kd.alpha": alpha})
        for alpha in (1.0, 2.0)
    ]
    planned = plan_target(table(*students), Place(tmp_path, SCALES["paper"]), SEEDS)
    stub = Stub()
    carry_out(in_order(planned), stub, tmp_path, reporter=quiet())
    assert [name.split("-")[0] for name in stub.ran] == ["teacher", "unified", "unified"] * SEEDS
    assert len(set(stub.ran)) == 3 * SEEDS
