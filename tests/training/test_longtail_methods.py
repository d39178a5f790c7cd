"""Whole runs of the long-tailed baselines: they learn, repeat, resume and train in half precision."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from ltat.training import train
from tests.training.test_resume import Interrupting, assert_same_run
from tests.training.tiny import tiny_config

CASES = {
    "reat": ["method=reat"],
    "reat, where its weights matter": [
        "method=reat",
        "reat.tail_impl=per_pair",
        "reat.tail_sign=intended",
        "attack.mode=train",
    ],
    "taet": ["method=taet", "taet.clean=0.5"],
}


@pytest.fixture(params=CASES)
def method(request) -> list[str]:
    return CASES[request.param]


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_robust_accuracy_beats_chance(method, run_tiny):
    folder = run_tiny("run", *method, "train.epochs=12", "attack.steps=5", "eval.n_examples=200")
    second_half = [row["loss"] for row in rows(folder)][6:]
    assert second_half[-1] < 0.9 * second_half[0]
    assert json.loads((folder / "report.json").read_text())["last"]["pgd2"]["overall"] > 20


def test_the_same_seed_gives_the_same_bits_and_so_does_a_resumed_run(method, run_tiny, tmp_path: Path):
    whole, again = (run_tiny(name, *method, "train.epochs=4") for name in ("whole", "again"))
    assert_same_run(whole, again)
    config = tiny_config(*method, "train.epochs=4")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "stopped", reporter=Interrupting(15))
    assert len(rows(tmp_path / "stopped")) == 2
    train(config, tmp_path / "stopped", resume=True)
    assert_same_run(whole, tmp_path / "stopped")


def test_half_precision_trains_without_nan(method, run_tiny):
    folder = run_tiny("run", *method, "train.epochs=2", "train.precision=bf16")
    assert all(np.isfinite(row["loss"]) for row in rows(folder))
    assert all(value.isfinite().all() for value in load_file(folder / "last.safetensors").values())
