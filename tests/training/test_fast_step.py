"""The fast training step trains as the exact one does, and can be looked into."""

import copy
import json
from functools import cache

import pytest
import torch
from torch import nn

from ltat.config import OptimSection
from ltat.engine.network import StepNetwork
from ltat.models import build_model
from ltat.training import Trainer, prepare, train
from ltat.training.optimizer import build_optimizer
from tests.methods.making import make_method
from tests.training.tiny import tiny_config

ONE_STAGE = ("method=at-bsl", "select.set=none")


@cache
def curve(*assignments: str) -> list[float]:
    trainer = Trainer(prepare(tiny_config(*ONE_STAGE, "train.epochs=4", *assignments)).student)
    return [trainer.run_epoch()["loss"] for _ in range(4)]


@pytest.mark.parametrize(("precision", "share"), [("fp32", 0.2), ("bf16", 1.0)])
def test_the_fast_step_trains_along_the_exact_ones_curve_within_the_noise_of_a_seed(precision: str, share: float):
    exact, fast = curve("attack.fold=false"), curve(f"train.precision={precision}")
    seeds = curve("attack.fold=false", "seed.train=1")
    noise = max(abs(a - b) for a, b in zip(exact, seeds, strict=True))
    assert exact[-1] < exact[0] and noise > 0
    assert max(abs(a - b) for a, b in zip(exact, fast, strict=True)) < share * noise


def test_one_working_copy_serves_every_step_and_follows_the_weights():
    trainer = Trainer(prepare(tiny_config(*ONE_STAGE, "train.precision=bf16")).student)
    trainer.run_epoch()
    kept = trainer.network._copy
    places = [p.data_ptr() for p in kept.trunk.parameters()]
    trainer.run_epoch()
    assert trainer.network._copy is kept and places == [p.data_ptr() for p in kept.trunk.parameters()]
    x = torch.rand(8, 1, 8, 8)
    with torch.no_grad():
        trainer.stage.model.eval()
        assert torch.allclose(trainer.network.folded(x)(x), trainer.stage.model(x), atol=0.2)


@pytest.mark.parametrize(("assignment", "folded"), [("attack.fold=false", False), ("attack.mode=train", False)])
def test_what_must_not_be_folded_is_not(assignment: str, folded: bool, monkeypatch):
    monkeypatch.setattr(StepNetwork, "folded", lambda self: pytest.fail("folded"))
    trainer = Trainer(prepare(tiny_config(*ONE_STAGE, assignment)).student)
    trainer.run_epoch()


def test_a_state_saved_by_another_form_of_the_optimiser_is_taken_up():
    torch.manual_seed(0)
    models = [build_model("small", num_classes=3, in_channels=1)]
    models.append(copy.deepcopy(models[0]))
    fused = build_optimizer(models[0], OptimSection())
    plain = torch.optim.SGD(models[1].parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.ones(2, 1, 8, 8)).logsumexp(1).sum().backward()
        optimizer.step()

    for _ in range(3):
        step(models[0], fused)
        step(models[1], plain)
    assert fused.defaults["fused"]
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    resumed = build_optimizer(models[1], OptimSection())
    resumed.load_state_dict(plain.state_dict())
    step(models[1], resumed)


def test_under_a_loss_scale_a_gpu_still_steps_all_tensors_at_once():
    optimizer = build_optimizer(build_model("small", num_classes=3, in_channels=1), OptimSection(), scaled=True)
    for group in optimizer.param_groups:  # None is torch's choice, False its loop over tensors
        assert group["foreach"] is None and group["fused"] is None


@pytest.mark.parametrize("name", ["self-distill", "rslad+igdm"])
def test_a_teacher_in_evaluation_mode_is_asked_once_and_one_in_training_mode_for_each_batch(name: str):
    torch.manual_seed(0)
    teacher = build_model("small", num_classes=4, in_channels=1)
    images = torch.rand(6, 1, 8, 8), torch.rand(6, 1, 8, 8)
    for mode, forwards in (("eval", 1), ("train", 2)):
        method = make_method(name, f"teacher.mode={mode}", counts=torch.tensor([4, 3, 2, 1]), teacher=teacher)
        expected = [method.teacher_logits(x) for x in images]
        seen = []
        handle = teacher.register_forward_hook(lambda module, inputs, output, seen=seen: seen.append(len(output)))
        found = method.teacher_logits_of(*images)
        handle.remove()
        assert seen == [12] if forwards == 1 else seen == [6, 6]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_compile_reaches_the_body_in_training_and_under_attack(monkeypatch):
    compiled = []

    def pretend(body):
        calls = []
        compiled.append(calls)
        return lambda x: (calls.append(len(x)), body(x))[1]

    monkeypatch.setattr(torch, "compile", pretend)
    plan = prepare(tiny_config(*ONE_STAGE, "train.compile=true"))
    compiled.clear()
    trainer = Trainer(plan.student)
    row = trainer.run_epoch()
    steps, attack_steps = plan.student.loader.steps(1), plan.config.attack.steps
    assert [len(calls) for calls in compiled] == [steps, steps * attack_steps]
    monkeypatch.undo()
    assert row["loss"] == Trainer(prepare(tiny_config(*ONE_STAGE)).student).run_epoch()["loss"]


def test_a_profiled_run_leaves_a_trace_of_every_stage(tmp_path):
    config = tiny_config("train.epochs=1", "teacher.epochs=1", "select.set=none", 'eval.attacks=["clean"]')
    train(config, tmp_path / "run", profile=True)
    for stage in ("teacher", "student"):
        events = json.loads((tmp_path / "run" / f"trace-{stage}.json").read_text())["traceEvents"]
        names = [event.get("name", "") for event in events]
        assert any("conv" in name for name in names)
        assert sum(name.startswith("ProfilerStep") for name in names) in (3, 6)


def test_a_run_too_short_for_a_trace_says_so(tmp_path, capsys):
    short = tiny_config(*ONE_STAGE, "train.epochs=1", "train.batch_size=200", 'eval.attacks=["clean"]')
    train(short, tmp_path / "run", profile=True)
    assert not list((tmp_path / "run").glob("trace*"))
    assert "fewer than 6 steps were left, so there is no trace" in " ".join(capsys.readouterr().err.split())


def test_nothing_is_traced_unasked(tmp_path):
    train(tiny_config(*ONE_STAGE, "train.epochs=1", 'eval.attacks=["clean"]'), tmp_path / "run")
    assert not list((tmp_path / "run").glob("trace*"))
