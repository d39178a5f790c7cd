"""An interrupted run ends as an uninterrupted one, bit for bit (on a CPU)."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ltat.training import train
from ltat.training.reporting import Reporter
from tests.training.tiny import tiny_config

TIMINGS = {"seconds", "images_per_s"}


class Interrupting(Reporter):
    """Stops the run like Ctrl-C in the middle of an epoch, ``steps`` steps after the run's start."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def advance(self, images: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        super().advance(images)


def metrics(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("teacher", "best", "last"):
        if (one / f"{name}.safetensors").exists():
            assert (one / f"{name}.safetensors").read_bytes() == (other / f"{name}.safetensors").read_bytes()
    assert metrics(one) == metrics(other)
    assert json.loads((one / "report.json").read_text()) == json.loads((other / "report.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(tiny_config(), folder)
    return folder


@pytest.mark.parametrize("steps", [0, 13, 30, 41, 47])
def test_a_run_stopped_anywhere_and_resumed_equals_the_whole_run(steps: int, uninterrupted: Path, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(), tmp_path, reporter=Interrupting(steps))
    train(tiny_config(), tmp_path, resume=True)
    assert_same_run(uninterrupted, tmp_path)


def test_the_stops_above_fall_into_both_stages(uninterrupted: Path):
    rows = metrics(uninterrupted)
    assert [(row["stage"], row["epoch"]) for row in rows] == [("teacher", 1), ("teacher", 2)] + [
        ("student", epoch) for epoch in (1, 2, 3)
    ]


def test_resuming_a_finished_run_changes_nothing(uninterrupted: Path):
    before = load_file(uninterrupted / "last.safetensors")
    train(tiny_config(), uninterrupted, resume=True)
    after = load_file(uninterrupted / "last.safetensors")
    assert all(before[name].equal(after[name]) for name in before)


def test_resuming_where_nothing_stands_starts_a_run(tmp_path: Path):
    train(tiny_config("method=at-bsl", "train.epochs=1"), tmp_path / "new", resume=True)
    assert (tmp_path / "new" / "report.json").exists()


def test_a_half_precision_run_resumes_with_its_loss_scale(tmp_path: Path):
    settings = ("method=at-bsl", "train.precision=fp16", "train.epochs=2")
    train(tiny_config(*settings), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(*settings), tmp_path / "parts", reporter=Interrupting(9))
    train(tiny_config(*settings), tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
