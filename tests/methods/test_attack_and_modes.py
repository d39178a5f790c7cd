"""What each method attacks, and what its forwards do to batch norm."""

import pytest
import torch
from torch import nn

from ltat.attacks import ThreatModel
from ltat.config import load_config
from ltat.config.resolving import resolve
from ltat.data import Batch
from ltat.errors import LtatError
from ltat.methods import find_method
from ltat.models import build_model
from tests.methods.making import attack_of, loss_of, make_method, objective_of

COUNTS = torch.tensor([30, 20, 10, 5])


def make(name: str, *assignments: str, teacher: nn.Module | None = None):
    return make_method(name, *assignments, counts=COUNTS, teacher=teacher)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("resnet18", num_classes=4, in_channels=1).train()


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 1, 8, 8, generator=generator)
    return Batch(images, torch.tensor([0, 1, 2, 3, 0, 1]), torch.arange(6))


def buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_buffers()}


def same(before: dict[str, torch.Tensor], model: nn.Module) -> bool:
    return all(torch.equal(before[name], value) for name, value in model.named_buffers())


@pytest.mark.parametrize("name", ["pgd-at", "at-bsl", "self-distill"])
def test_the_training_attack_ascends_plain_cross_entropy_in_evaluation_mode(name: str, batch: Batch):
    model, teacher = network(0), network(1) if name == "self-distill" else None
    method = make(
        name, "attack.steps=1", "attack.start=zero", "attack.step_size=0.01", "attack.eps=0.05", teacher=teacher
    )
    before = buffers(model)
    x_adv = attack_of(method, model, batch, torch.Generator())
    assert same(before, model) and model.training

    model.eval()
    x = batch.images.clone().requires_grad_()
    nn.functional.cross_entropy(model(x), batch.labels, reduction="sum").backward()
    expected = (batch.images + 0.01 * x.grad.sign()).clamp(0, 1)
    assert torch.allclose(x_adv, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["pgd-at", "dafa", "taet"])
def test_a_training_attack_does_not_check_its_radius_again_in_every_step(name: str, batch: Batch, monkeypatch):
    method, checked = make(name, "attack.steps=1"), []
    monkeypatch.setattr(ThreatModel, "_check_radius", lambda threat: checked.append(threat.eps))
    attack_of(method, network(0), batch, torch.Generator())
    assert all(isinstance(eps, torch.Tensor) for eps in checked)  # DAFA's, one for each image of this batch


@pytest.mark.parametrize("loss", ["bsl", "kl-clean", "kl-adv"])
def test_every_inner_loss_of_the_main_method_moves_images_its_own_way(loss: str, batch: Batch):
    model, teacher = network(0), network(1)
    teacher.eval()

    def attacked(name: str) -> torch.Tensor:
        method = make("self-distill", f"attack.loss={name}", "attack.steps=3", teacher=teacher)
        return attack_of(method, model, batch, torch.Generator().manual_seed(3))

    assert not torch.equal(attacked(loss), attacked("ce"))


def test_attacking_the_divergence_of_a_network_from_itself_finds_nothing(batch: Batch):
    model = network(0)
    teacher = network(0).eval()
    method = make("self-distill", "attack.loss=kl-adv", teacher=teacher)
    x_adv = attack_of(method, model, batch, torch.Generator().manual_seed(3))
    model.eval()
    objective = objective_of(method, model, batch)
    assert objective(model(x_adv), batch.labels, x_adv).abs().max().item() < 1e-6


@pytest.mark.parametrize("setting", ["attack.loss=kl-adv", "attack.loss=unheard", "attack.start=unheard"])
def test_an_attack_that_cannot_be_made_fails_before_training(setting: str):
    with pytest.raises(LtatError, match=setting):
        make("at-bsl", setting)


@pytest.mark.parametrize(("bn", "updates"), [("two", 2), ("concat", 1), ("freeze_minus", 1)])
def test_each_batch_norm_setting_moves_the_students_statistics_as_often_as_it_says(bn, updates, batch: Batch):
    model = network(0)
    method = make("self-distill", f"kd.bn={bn}", teacher=network(1))
    loss_of(method, model, batch, batch.images)
    assert model.bn1.num_batches_tracked.item() == updates
    assert model.bn1.track_running_stats


def test_the_teacher_is_frozen_in_the_mode_that_is_set(batch: Batch):
    teacher = network(1)
    method = make("self-distill", teacher=teacher)
    before = buffers(teacher)
    loss_of(method, network(0), batch, batch.images).loss.backward()
    assert same(before, teacher) and not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    make("self-distill", "teacher.mode=train", teacher=teacher)
    assert teacher.training


def test_a_student_may_start_from_its_teacher_of_the_same_shape_only():
    teacher = network(1)
    method = make("self-distill", "student.init=teacher", teacher=teacher)
    student = network(0)
    method.initialise(student)
    assert torch.equal(student.conv1.weight, teacher.conv1.weight)
    with pytest.raises(LtatError, match=r"student\.init"):
        method.initialise(build_model("small", num_classes=4, in_channels=1))


def one_step(method, model, batch: Batch) -> torch.Tensor:
    return attack_of(method, model, batch, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("loss", ["ce", "bsl", "kl-clean", "kl-adv"])
def test_every_inner_loss_ascends_its_own_formula(loss: str, batch: Batch):
    model, teacher = network(0), network(1).eval()
    settings = (
        f"attack.loss={loss}",
        "attack.steps=1",
        "attack.start=zero",
        "attack.step_size=0.01",
        "attack.eps=0.05",
    )
    x_adv = one_step(make("self-distill", *settings, "bsl.tau=1.5", teacher=teacher), model, batch)

    model.eval()
    x = batch.images.clone().requires_grad_()
    log_s, log_t = model(x).log_softmax(1), teacher(x if loss == "kl-adv" else batch.images).log_softmax(1)
    own = torch.arange(6), batch.labels
    formulas = {
        "ce": -log_s[own].sum(),
        "bsl": -(model(x) + 1.5 * COUNTS.log()).log_softmax(1)[own].sum(),
        "kl-clean": (log_t.exp() * (log_t - log_s)).sum(),
        "kl-adv": (log_t.exp() * (log_t - log_s)).sum(),
    }
    formulas[loss].backward()
    agree = (x_adv - batch.images).sign() == x.grad.sign()
    inside = (batch.images > 0.01) & (batch.images < 0.99)
    assert agree[inside].float().mean() > 0.99  # a sign may flip where the gradient is rounding noise


def test_the_settings_of_the_attack_reach_it(batch: Batch):
    model = network(0)
    before = buffers(model)
    one_step(make("at-bsl", "attack.mode=train"), model, batch)
    assert not same(before, model)
    far = one_step(make("at-bsl", "attack.norm=l2", "attack.eps=1", "attack.step_size=1"), model, batch) - batch.images
    assert far.flatten(1).norm(dim=1).max() <= 1 + 1e-5 and far.abs().max() > 0.05
    near = one_step(make("at-bsl", "attack.eps=0.01"), model, batch) - batch.images
    assert near.abs().max() <= 0.01 + 2**-23


def test_one_concatenated_forward_keeps_plus_and_minus_apart(batch: Batch):
    model = network(0).eval()  # with running statistics the forwards of all settings agree
    x_adv = (batch.images + 0.05).clamp(0, 1)
    loss = {
        bn: loss_of(
            make("self-distill", f"kd.bn={bn}", "kd.form=kl_adv+igdm", teacher=network(1)), model, batch, x_adv
        ).loss.item()
        for bn in ("two", "concat", "freeze_minus")
    }
    assert loss["concat"] == pytest.approx(loss["two"], rel=1e-5)
    assert loss["freeze_minus"] == pytest.approx(loss["two"], rel=1e-5)


def test_the_teacher_stage_is_plain_adversarial_training_on_the_balanced_set():
    method = find_method("self-distill")
    asked = load_config(
        lambda m: find_method(m).Config,
        assignments=[
            "teacher.epochs=4",
            "teacher.base_lr=0.05",
            "attack.loss=bsl",
            "teacher.aug=none",
            "optim.wd=0.001",
            "attack.eps=0.3",
            "seed.train=9",
            "db.gamma=2",
            "model.normalize=train",
            "model.name=small",
            "train.precision=bf16",
            "data.imbalance_ratio=7",
        ],
    )
    config = resolve(asked, num_classes=10)
    teacher = method.teacher_config(config)
    assert (teacher.method, teacher.data.sampling, teacher.attack.loss) == ("pgd-at", "balanced", "ce")
    assert (teacher.train.epochs, teacher.train.batch_size, teacher.optim.lr, teacher.optim.wd) == (4, 32, 0.05, 0.001)
    assert (teacher.aug.pad, teacher.aug.flip) == (0, False)
    assert teacher.select.set == "none"
    for section in ("db", "model", "seed", "eval"):
        assert getattr(teacher, section) == getattr(config, section)
    assert (teacher.attack.eps, teacher.train.precision, teacher.data.imbalance_ratio) == (0.3, "bf16", 7)
