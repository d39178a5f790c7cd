"""Whole runs of the long-tailed and the fairness baselines: they learn, repeat, resume and train in half precision."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ltat.models import load_model, load_weights
from ltat.training import prepare, train
from tests.training.test_resume import Interrupting, assert_same_run
from tests.training.tiny import tiny_config

CASES = {
    "reat": ["method=reat"],
    "robal": ["method=robal", "schedule.kind=multistep", "train.batch_size=64"],
    "taet": ["method=taet", "taet.clean=0.5", "attack.steps=5"],
    "faal": ["method=faal", "faal.radius=0.1"],
    "dafa": ["method=dafa", "dafa.warmup=0.5"],
}
COUPLED = ["method=reat", "reat.tail_impl=per_pair", "reat.tail_sign=intended", "attack.mode=train"]
"""REAT where the weights of its attack, and so the counts in its state, make a difference."""

each_method = pytest.mark.parametrize("method", CASES.values(), ids=CASES)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@each_method
def test_the_loss_falls_and_robust_accuracy_beats_chance(method: list[str], run_tiny):
    folder = run_tiny("run", *method, "train.epochs=12", "eval.n_examples=200")
    second_half = [row["loss"] for row in rows(folder)][6:]
    assert second_half[-1] < 0.9 * second_half[0]
    assert json.loads((folder / "report.json").read_text())["last"]["pgd2"]["overall"] > 20


@pytest.mark.parametrize("method", [*CASES.values(), COUPLED], ids=[*CASES, "reat coupled"])
def test_the_same_seed_gives_the_same_bits_and_so_does_a_resumed_run(method: list[str], run_tiny, tmp_path: Path):
    whole = run_tiny("whole", *method, "train.epochs=4")
    config = tiny_config(*method, "train.epochs=4")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "stopped", reporter=Interrupting(15))
    assert len(rows(tmp_path / "stopped")) == 2
    train(config, tmp_path / "stopped", resume=True)
    assert_same_run(whole, tmp_path / "stopped")


def test_a_saved_robal_is_evaluated_with_its_adjustment_inside(run_tiny):
    adjusted = ("method=robal", "train.epochs=2", "schedule.kind=multistep", "robal.tau_p=1.7", "robal.scale_out=10")
    folder = run_tiny("run", *adjusted)
    read = load_model(folder / "last")
    stage = prepare(tiny_config(*adjusted)).student
    load_weights(stage.model, folder / "last")
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = stage.model.eval()(images)
    torch.testing.assert_close(read(images), logits)
    assert read.classifier.scale == 10 and read.classifier.offset.argmax() == stage.loader.class_counts(1).argmin()


@each_method
def test_half_precision_trains_without_nan(method: list[str], run_tiny):
    folder = run_tiny("run", *method, "train.epochs=2", "train.precision=bf16")
    assert all(np.isfinite(row["loss"]) for row in rows(folder))
    assert all(value.isfinite().all() for value in load_file(folder / "last.safetensors").values())
