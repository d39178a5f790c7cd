"""What a sweep shows while it runs, and its figures at the end."""

import io
import statistics

import pytest
from rich.console import Console

from ltat.sweeps import Phase, RunState, SweepReporter
from ltat.sweeps.results import Row, add, cell, render
from ltat.sweeps.table import live_table, seconds_left, summary

ROW = {"stage": "student", "epoch": 2, "loss": 1.5, "train_adv": 40.0, "seconds": 10.0, "images_per_s": 900.0}


def state(phase: Phase, epoch: int = 0, **row: float) -> RunState:
    return RunState(phase, epoch, 10, {**ROW, **row} if epoch else None, "it broke" if phase is Phase.FAILED else "")


def shown(table: object, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()


def test_the_live_table_has_what_happens_first_and_counts_what_does_not_fit():
    states = {f"done{k}": state(Phase.FINISHED, 10) for k in range(30)}
    states |= {"broken": state(Phase.FAILED), "going": state(Phase.RUNNING, 4), "ending": state(Phase.RUNNING, 10)}
    lines = shown(live_table(states, 2, height=14)).splitlines()
    words = [line.split()[0] for line in lines[2:]]
    assert words[:4] == ["going", "ending", "broken", "done0"]
    assert "4/10" in lines[2] and "900" in lines[2] and "evaluation" in lines[3]
    assert "30 of 33 runs finished, 2 running, 1 failed" in lines[-1] and "26 more finished" in lines[-1]
    assert len(lines) < 14


@pytest.mark.parametrize("places", [1, 2, 8])
def test_the_time_left_counts_epochs_by_their_own_seconds(places: int):
    states = {
        "quick": state(Phase.RUNNING, 5, seconds=2.0),  # 10 s left
        "slow": state(Phase.RUNNING, 6, seconds=10.0),  # 40 s left
        "waiting": state(Phase.WAITING),  # 10 epochs of the mean, 6 s
        "broken": state(Phase.FAILED),
    }
    assert seconds_left(states, places) == {1: 110.0, 2: 60.0, 8: 60.0}[places]


def test_no_time_is_promised_before_the_first_epoch_or_after_the_last():
    assert seconds_left({"a": state(Phase.WAITING)}, 1) is None
    assert "left" not in summary({"a": state(Phase.RUNNING, 10)}, 1)


def test_a_log_gets_a_line_when_a_run_begins_ends_or_fails_and_none_for_what_was_done_before():
    console = Console(file=io.StringIO(), width=200)
    reporter = SweepReporter(console)
    with reporter:
        begun = {"done": state(Phase.FINISHED, 10), "a": state(Phase.WAITING), "b": state(Phase.RUNNING)}
        reporter.update(begun, 1)
        reporter.update({**begun, "b": state(Phase.FINISHED, 10), "a": state(Phase.RUNNING)}, 1)
        reporter.update({**begun, "b": state(Phase.FINISHED, 10), "a": state(Phase.FAILED)}, 1)
    assert console.file.getvalue().splitlines() == [
        "b: running, epoch 0 of 10",
        "a: running, epoch 0 of 10",
        "b: finished",
        "a: failed: it broke",
    ]


def test_a_terminal_gets_a_table():
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with SweepReporter(console) as reporter:
        reporter.update({"a": state(Phase.RUNNING, 4)}, 1)
    assert "4/10" in console.file.getvalue() and "0 of 1 runs finished" in console.file.getvalue()


def test_figures_are_mean_and_deviation_over_the_runs_of_a_row():
    rows = {"at-bsl": Row(), "pgd-at": Row()}
    for k, value in enumerate((60.0, 63.0)):
        add(rows["at-bsl"], f"at-bsl-s{k}", {"n": 400, "clean": {"overall": value, "few": None, "balanced": 50.0}})
    add(rows["pgd-at"], "pgd-at-s0", {"clean": {"overall": 70.0, "few": None, "balanced": 51.0}, "flags": []})
    text = shown(render(rows))
    assert f"61.50 ± {statistics.stdev((60, 63)):.2f}" in text and "50.00 ± 0.00" in text and "70.00" in text
    assert "few" not in text and "balanced" in text  # no run has images of that group
    assert cell([None, None]) == "–" and cell([None, 5.0]) == "5.00"


def test_a_narrow_terminal_loses_no_figure():
    rows = {"self-distill kd.alpha=0.5": Row()}
    groups = dict.fromkeys(("overall", "tail", "many", "medium", "few"), 99.99) | {"balanced": 89.99}
    for k in range(2):
        add(rows["self-distill kd.alpha=0.5"], f"s{k}", {"autoattack": groups})
    text = shown(render(rows), width=80)
    assert text.count("9.99") == 6 and text.count("0.00") == 6 and "…" not in text and "autoattack" in text
