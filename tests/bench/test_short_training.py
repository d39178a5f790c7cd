"""The training of the GPU command: what it has done is in OUT, also when it is cut off."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from bench import short_training
from ltat.config import load_config
from ltat.methods import find_method

TINY = ("model.name=small", "train.batch_size=4", "teacher.batch_size=2", "attack.steps=1", "eval.n_examples=2")


def test_an_epoch_that_was_done_is_in_out_when_the_next_part_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def cut_off(*given: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(short_training, "COUNTS", (4, 4))
    monkeypatch.setattr("ltat.training.run.write_report", cut_off)
    assigned = [word for setting in TINY for word in ("--set", setting)]
    done = CliRunner().invoke(short_training.main, [str(tmp_path / "out"), "--device=cpu", "--epochs=1", *assigned])
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2, done.output  # the teacher's epoch and the student's


def test_the_teacher_trains_for_one_epoch_only(tmp_path: Path):
    given = short_training.settings(tmp_path, "cpu", epochs=4)
    config = load_config(lambda method: find_method(method).Config, assignments=given).config
    assert (config.teacher.epochs, config.train.epochs) == (1, 4)
