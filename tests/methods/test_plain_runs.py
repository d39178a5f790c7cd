"""Whole short runs of the plain methods on digits."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from ltat.training import train
from tests.training.test_resume import Interrupting, assert_same_run, metrics
from tests.training.tiny import tiny_config

NAMES = ["trades"]


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


def test_two_epochs_learn(name: str, tmp_path):
    settings = ("train.epochs=2", "train.batch_size=16", "eval.n_examples=200", "select.set=none")
    train(tiny_config(f"method={name}", *settings), tmp_path)
    losses = [row["loss"] for row in metrics(tmp_path)]
    assert losses[1] < losses[0]
    assert json.loads((tmp_path / "report.json").read_text())["last"]["pgd2"]["overall"] > 20


def test_a_seed_fixes_the_run_and_an_interruption_changes_nothing(name: str, tmp_path):
    config = tiny_config(f"method={name}", "train.epochs=2")
    train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", reporter=Interrupting(8))
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_half_precision_stays_finite(name: str, tmp_path):
    train(tiny_config(f"method={name}", "train.epochs=2", "train.precision=bf16"), tmp_path)
    assert all(np.isfinite(row["loss"]) for row in metrics(tmp_path))
    assert all(value.isfinite().all() for value in load_file(tmp_path / "last.safetensors").values())
