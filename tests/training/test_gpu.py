"""What only a GPU can show: every device of the loop in its place, and the same result after an interruption."""

import json

import pytest
import torch

from ltat.attacks import pgd
from ltat.models import load_model
from ltat.training import train
from tests.training.tiny import tiny_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_run_trains_both_stages_and_is_reported(precision: str, tmp_path):
    config = tiny_config("train.device=cuda", f"train.precision={precision}", "train.epochs=6")
    report = train(config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    student = [row["loss"] for row in rows if row["stage"] == "student"]
    assert student[-1] < student[0]
    assert report["last"].to_json()["clean"]["overall"] > 20


def test_a_gpu_run_under_determinism_repeats_bit_for_bit(tmp_path):
    settings = ("train.device=cuda", "train.deterministic=true", "train.epochs=2", "method=at-bsl")
    for name in ("one", "two"):
        train(tiny_config(*settings), tmp_path / name)
    one, two = (load_model(tmp_path / name / "last").state_dict() for name in ("one", "two"))
    assert all(one[key].equal(two[key]) for key in one)


def test_autoattack_of_a_gpu_run_survives_determinism(tmp_path):
    settings = ("train.device=cuda", "train.deterministic=true", "train.epochs=1", "method=at-bsl", "select.set=none")
    report = train(tiny_config(*settings, 'eval.attacks=["autoattack"]', "eval.n_examples=10"), tmp_path / "run")
    assert "autoattack" in report["last"].to_json()


def test_the_attack_on_a_gpu_agrees_with_the_cpu(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # 10 bits of mantissa turn many a small gradient
    train(tiny_config("method=at-bsl", "train.epochs=1", "select.set=none"), tmp_path / "run")
    model = load_model(tmp_path / "run" / "last")
    x = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(32) % 10
    cpu = pgd(model, x, y, start="zero")
    gpu = pgd(model.cuda(), x.cuda(), y.cuda(), start="zero").cpu()
    assert ((cpu - gpu).abs() < 1e-6).float().mean() > 0.98  # a sign may flip where the gradient is rounding noise
