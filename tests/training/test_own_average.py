"""With ``teacher.train=ema`` the student learns from the moving average of its own weights, without a teacher stage."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ltat.errors import LtatError
from ltat.methods import LossTerms, Step
from ltat.models import build_model
from ltat.training import Trainer, prepare, teacher_key, train
from tests.training.test_resume import Interrupting, assert_same_run
from tests.training.tiny import tiny_config

DECAY, ALPHA = 0.8, 0.9
OWN = (
    *("teacher.train=ema", "average.kind=ema", f"average.decay={DECAY}"),
    *("kd.form=kl_clean", "kd.mix=convex", f"kd.alpha={ALPHA}"),
)


def log_softmax64(logits: Tensor) -> np.ndarray:
    z = logits.detach().double().numpy()
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def test_every_step_learns_from_the_average_of_the_weights_before_it(monkeypatch: pytest.MonkeyPatch):
    """The loss is (1 - w) BSL + w KL(softmax T(x) || softmax S(x')), w = alpha e/E, computed here in float64."""
    stage = prepare(tiny_config(*OWN)).student
    states: list[dict[str, Tensor]] = []
    trainer = Trainer(stage, lambda images: states.append(floats(stage.model)))
    original, checked = stage.method.loss, []

    def observed(step: Step) -> LossTerms:
        terms = original(step)
        expected = floats(stage.model) if not states else averaged(states)
        held = floats(stage.method.teacher)
        weights = [name for name in held if "running" not in name or states]
        assert all(torch.allclose(held[name].double(), expected[name].double(), atol=1e-6) for name in weights)
        found = loss64(step, stage.method.teacher, terms.logits)
        checked.append(abs(terms.loss.item() - found) / found)
        return terms

    monkeypatch.setattr(stage.method, "loss", observed)
    for _ in range(stage.config.train.epochs):
        trainer.run_epoch()
    assert len(checked) == 18 and max(checked) < 1e-5
    assert stage.method.teacher is trainer.outcome.model and not stage.method.teacher.training


def floats(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: v.detach().clone() for name, v in model.state_dict().items() if v.is_floating_point()}


def averaged(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The recurrence over the weights after every step so far, in float64."""
    mean = {name: value.double() for name, value in states[0].items()}
    for state in states[1:]:
        mean = {name: DECAY * value + (1 - DECAY) * state[name].double() for name, value in mean.items()}
    return mean


def loss64(step: Step, teacher: torch.nn.Module, student: Tensor) -> float:
    weight, labels = ALPHA * step.epoch / step.epochs, step.batch.labels.numpy()
    with torch.no_grad():
        target = log_softmax64(teacher(step.batch.images))
    own, biased = log_softmax64(student), log_softmax64(student.detach().double() + step.class_counts.double().log())
    bsl = -biased[np.arange(len(labels)), labels].mean()
    kl = (np.exp(target) * (target - own)).sum(axis=1).mean()
    return float((1 - weight) * bsl + weight * kl)


@pytest.mark.parametrize("steps", [4, 12])
def test_a_run_stopped_and_resumed_ends_as_the_whole_run(steps: int, tmp_path: Path):
    config = tiny_config(*OWN)
    train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", reporter=Interrupting(steps))
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert not (tmp_path / "whole" / "teacher.safetensors").exists()


def test_it_trains_another_student_than_a_frozen_copy_of_its_start_would(tmp_path: Path, monkeypatch):
    config = tiny_config(*OWN)
    train(config, tmp_path / "own")
    monkeypatch.setattr("ltat.training.averaging.Ema.end_step", lambda self, epoch: None)
    train(config, tmp_path / "frozen")
    one, other = (load_file(tmp_path / name / "last.safetensors") for name in ("own", "frozen"))
    assert not one["conv1.weight"].equal(other["conv1.weight"])


def test_there_is_no_teacher_stage_to_share():
    assert teacher_key(tiny_config(*OWN)) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("average.kind=swa",), "needs average.kind=ema and it is swa"),
        (("average.start=0.9",), "average.start=0.9; set it to 0"),
        (("teacher.path=t.safetensors",), "leave one out"),
        (("teacher.mode=train",), "needs teacher.mode=eval"),
        (("student.init=teacher",), "needs a teacher before the student"),
    ],
)
def test_an_average_that_cannot_teach_is_refused_before_the_folder_is_made(settings, message, tmp_path: Path):
    with pytest.raises(LtatError, match=message):
        train(tiny_config(*OWN, *settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_another_teacher_beside_it_is_refused(tmp_path: Path):
    with pytest.raises(LtatError, match="learns from the run's own average"):
        train(tiny_config(*OWN), tmp_path / "run", teacher=build_model("small", num_classes=10, in_channels=1))


@pytest.mark.parametrize("method", ["ard", "rslad", "adaad+igdm"])
def test_the_other_methods_with_a_teacher_can_learn_from_it_too(method: str):
    stage = prepare(tiny_config(f"method={method}", *OWN[:3], "train.epochs=1", "train.batch_size=200")).student
    assert Trainer(stage).run_epoch()["loss"] > 0
