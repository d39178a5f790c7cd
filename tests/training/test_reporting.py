"""What a log shows of long work."""

import io

import pytest
from rich.console import Console

from ltat.training import reporting
from ltat.training.reporting import Reporter

ROW = {"stage": "student", "epoch": 1, "loss": 1.25, "train_adv": 40.0, "images_per_s": 1234.0}


class Clock:
    """Seconds pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reporting, "time", clock)
    return clock


def test_a_log_hears_of_long_work_every_few_seconds_and_not_more(clock):
    heard = io.StringIO()
    with Reporter(Console(file=heard)) as reporter:
        reporter.begin("student", 1000)
        for _ in range(100):
            clock.now += 0.3
            reporter.advance(10)
    lines = heard.getvalue().splitlines()
    assert 4 <= len(lines) <= 6
    assert all("student" in line and "of 1,000 images" in line and "left" in line for line in lines)


def test_the_last_epoch_is_always_told(clock):
    heard = io.StringIO()
    with Reporter(Console(file=heard)) as reporter:
        reporter.begin("student", 10)
        reporter.epoch(ROW, epochs=2)
        assert heard.getvalue() == ""
        reporter.epoch({**ROW, "epoch": 2, "score": 33.0, "select": "val_pgd10"}, epochs=2)
    assert heard.getvalue() == "student 2/2  loss 1.250  train adv 40.0 %  val_pgd10 33.0 %  1,234 images/s\n"


def test_an_attack_that_ends_in_one_batch_after_a_long_time_is_told(clock):
    heard = io.StringIO()
    with Reporter(Console(file=heard)) as reporter:
        reporter.evaluation("clean", 200, 200)
        clock.now += 30
        reporter.evaluation("autoattack square", 120, 120)
    assert heard.getvalue() == "autoattack square: 120 of 120 images\n"


def test_a_terminal_shows_a_bar_with_speed_and_time_left():
    seen = io.StringIO()
    with Reporter(Console(file=seen, force_terminal=True, width=100)) as reporter:
        reporter.begin("student", 100)
        reporter.advance(50)
        reporter.epoch(ROW, epochs=2)
        reporter.evaluation("pgd20", 3, 9)
    assert "student 1/2" in seen.getvalue() or "pgd20" in seen.getvalue()
    assert "images/s" in seen.getvalue()
