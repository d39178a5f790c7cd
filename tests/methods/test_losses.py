"""Each method's loss and gradient against an independent float64 evaluation of its formula."""

import numpy as np
import pytest
import torch
from torch import nn

from ltat.data import Batch
from ltat.errors import LtatError
from ltat.methods.igdm import IgdmSection, mirrored
from ltat.models import build_model
from tests.methods.making import loss_of, make_method, step_of

CLASSES, PIXELS, IMAGES = 5, 12, 7
COUNTS = torch.tensor([100, 50, 20, 8, 3])


def make(name: str, *assignments: str, teacher: nn.Module | None = None, counts: torch.Tensor = COUNTS):
    return make_method(name, *assignments, counts=counts, teacher=teacher)


class Linear(nn.Module):
    """f(x) = W x + b on flattened pixels; small enough to differentiate by hand."""

    num_classes = CLASSES

    def __init__(self, seed: int, scale: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(scale * torch.randn(CLASSES, PIXELS, generator=generator))
        self.bias = nn.Parameter(scale * torch.randn(CLASSES, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(IMAGES, 3, 2, 2, generator=generator)
    labels = torch.randint(CLASSES, (IMAGES,), generator=generator)
    return Batch(images, labels, torch.arange(IMAGES))


@pytest.fixture
def x_adv(batch: Batch) -> torch.Tensor:
    noise = torch.rand(batch.images.shape, generator=torch.Generator().manual_seed(1))
    return (batch.images + 0.1 * (noise - 0.5)).clamp(0, 1)


def log_softmax(z: np.ndarray) -> np.ndarray:
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def kl_batchmean(target: np.ndarray, logits: np.ndarray) -> float:
    p, q = log_softmax(target), log_softmax(logits)
    return float((np.exp(p) * (p - q)).sum() / len(p))


def logits64(weight: np.ndarray, bias: np.ndarray, images: torch.Tensor) -> np.ndarray:
    return images.flatten(1).double().numpy() @ weight.T + bias


def gradient64(loss, weight: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of ``loss(weight)``."""
    gradient = np.zeros_like(weight)
    for index in np.ndindex(*weight.shape):
        ahead, behind = weight.copy(), weight.copy()
        ahead[index] += step
        behind[index] -= step
        gradient[index] = (loss(ahead) - loss(behind)) / (2 * step)
    return gradient


def cross_entropy64(logits: np.ndarray, labels: torch.Tensor) -> float:
    return float(-log_softmax(logits)[np.arange(len(labels)), labels.numpy()].mean())


KD_TERMS = {
    "igdm": lambda s, t: kl_batchmean(t("+") - t("-"), s("+") - s("-")),
    "kl_adv": lambda s, t: kl_batchmean(t("+"), s("+")),
    "kl_clean": lambda s, t: kl_batchmean(t("0"), s("+")),
    "kl_adv+igdm": lambda s, t: kl_batchmean(t("+"), s("+")) + kl_batchmean(t("+") - t("-"), s("+") - s("-")),
}


@pytest.mark.parametrize("form", KD_TERMS)
@pytest.mark.parametrize(
    ("temperature", "biased", "taken_off"), [(1.0, False, 0.0), (2.0, False, 0.0), (1.0, True, 0.0), (2.0, True, 0.6)]
)
def test_the_students_loss_and_gradient_are_those_of_the_formula(form, temperature, biased, taken_off, batch, x_adv):
    student, teacher = Linear(2), Linear(3)
    kd = (f"kd.form={form}", "kd.alpha=2.5", f"kd.temp={temperature}", f"kd.on_biased={str(biased).lower()}")
    if form == "igdm" and taken_off:
        with pytest.raises(LtatError, match=r"kd\.target_tau cancels in kd\.form=igdm"):
            make("self-distill", *kd, f"kd.target_tau={taken_off}", teacher=teacher)
        return
    kd = (*kd, f"kd.target_tau={taken_off}")
    method = make("self-distill", *kd, "bsl.tau=0.7", teacher=teacher)
    terms = loss_of(method, student, batch, x_adv, epoch=3, epochs=10)
    terms.loss.backward()

    views = {"+": x_adv, "-": 2 * batch.images - x_adv, "0": batch.images}
    bias = student.bias.detach().double().numpy()
    fixed = [parameter.detach().double().numpy() for parameter in teacher.parameters()]
    log_n = np.log(COUNTS.numpy().astype(np.float64))
    prior = 0.7 * log_n

    def loss64(weight: np.ndarray) -> float:
        def s(view: str) -> np.ndarray:
            return (logits64(weight, bias, views[view]) + (prior if biased else 0)) / temperature

        def t(view: str) -> np.ndarray:
            return (logits64(*fixed, views[view]) - taken_off * log_n) / temperature

        cls = cross_entropy64(logits64(weight, bias, views["+"]) + prior, batch.labels)
        return cls + 2.5 * 0.3 * temperature**2 * KD_TERMS[form](s, t)

    weight = student.weight.detach().double().numpy()
    assert terms.loss.item() == pytest.approx(loss64(weight), rel=1e-5)
    np.testing.assert_allclose(student.weight.grad.numpy(), gradient64(loss64, weight), rtol=2e-3, atol=2e-5)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(("name", "tau"), [("pgd-at", 0.0), ("at-bsl", 1.0), ("at-bsl", 0.4)])
def test_the_baselines_loss_and_gradient_are_those_of_the_formula(name: str, tau: float, batch, x_adv):
    student = Linear(2)
    method = make(name, *([f"bsl.tau={tau}"] if name == "at-bsl" else []))
    loss_of(method, student, batch, x_adv, epoch=1, epochs=2).loss.backward()
    prior = tau * np.log(COUNTS.numpy().astype(np.float64))
    bias = student.bias.detach().double().numpy()

    def loss64(weight: np.ndarray) -> float:
        return cross_entropy64(logits64(weight, bias, x_adv) + prior, batch.labels)

    expected = gradient64(loss64, student.weight.detach().double().numpy())
    np.testing.assert_allclose(student.weight.grad.numpy(), expected, rtol=2e-3, atol=2e-5)


def test_balanced_softmax_with_equal_counts_is_plain_cross_entropy(batch, x_adv):
    student, equal = Linear(2), torch.full((CLASSES,), 40)
    plain = loss_of(make("pgd-at", counts=equal), student, batch, x_adv).loss
    balanced = loss_of(make("at-bsl", counts=equal), student, batch, x_adv).loss
    assert balanced.item() == pytest.approx(plain.item(), rel=1e-6)


def test_igdm_of_identical_networks_is_zero_with_zero_gradient(batch, x_adv):
    student, teacher = Linear(2), Linear(2)
    method = make("self-distill", "kd.alpha=1", "kd.mix=convex", "kd.ramp=none", teacher=teacher)
    terms = loss_of(method, student, batch, x_adv)  # convex with alpha 1: the distillation term alone
    terms.loss.backward()
    assert terms.loss.item() == pytest.approx(0, abs=1e-7)
    assert student.weight.grad.abs().max().item() < 1e-6


def test_igdm_ignores_the_biases_of_a_linear_network(batch, x_adv):
    student, teacher = Linear(2), Linear(3)
    method = make("self-distill", teacher=teacher)
    before = loss_of(method, student, batch, x_adv).logs["kd"].item()
    with torch.no_grad():
        student.bias += torch.arange(CLASSES)
        teacher.bias -= 5
    assert loss_of(method, student, batch, x_adv).logs["kd"].item() == pytest.approx(before, rel=1e-4)


def test_elementmean_is_batchmean_over_the_number_of_classes(batch, x_adv):
    student, teacher = Linear(2), Linear(3)
    kd = {
        reduction: loss_of(make("self-distill", f"kd.reduction={reduction}", teacher=teacher), student, batch, x_adv)
        .logs["kd"]
        .item()
        for reduction in ("batchmean", "elementmean")
    }
    assert kd["elementmean"] * CLASSES == pytest.approx(kd["batchmean"], rel=1e-6)


def test_the_weight_rises_linearly_over_the_run_or_over_the_named_length(batch, x_adv):
    student, teacher = Linear(2), Linear(3)

    def ratio(epoch: int, *assignments: str) -> float:
        method = make("self-distill", "kd.alpha=2", *assignments, teacher=teacher)
        logs = loss_of(method, student, batch, x_adv, epoch=epoch, epochs=10).logs
        return logs["kd_ratio"].item() * logs["cls"].item() / logs["kd"].item()

    assert ratio(1) == pytest.approx(0.2, rel=1e-4)
    assert ratio(10) == pytest.approx(2.0, rel=1e-4)
    assert ratio(10, "kd.ramp_len=200") == pytest.approx(0.1, rel=1e-4)
    assert ratio(1, "kd.ramp=none") == pytest.approx(2.0, rel=1e-4)


def test_the_mirrored_image_leaves_the_box_unless_asked_to_stay(batch, x_adv):
    teacher = Linear(3)
    edge = torch.zeros_like(batch.images)
    method = make("self-distill", teacher=teacher)
    step = step_of(method, teacher, batch._replace(images=edge), edge + 0.1)
    free, kept = (mirrored(IgdmSection(clamp_minus=clamp), step) for clamp in (False, True))
    assert free.max().item() == pytest.approx(-0.1)
    assert kept.abs().max().item() == 0


def test_alpha_left_out_is_the_authors_choice_for_the_number_of_classes():
    many = torch.full((100,), 9)
    wide = Linear(3)
    wide.num_classes = 100
    assert make("self-distill", teacher=Linear(3)).config.kd.alpha == 1
    assert make("self-distill", teacher=wide, counts=many).config.kd.alpha == 10
    assert make("self-distill", "kd.form=kl_adv", teacher=wide, counts=many).config.kd.alpha == 1
    assert make("self-distill", "kd.alpha=0", teacher=Linear(3)).config.kd.alpha == 0


@pytest.mark.parametrize(
    ("assignments", "teacher", "message"),
    [
        ([], None, "--teacher"),
        (["kd.mix=convex", "kd.alpha=3"], Linear(3), "kd.alpha"),
        (["teacher.ckpt=best", "select.set=none"], Linear(3), "teacher.ckpt"),
    ],
)
def test_settings_that_do_not_fit_together_fail_before_training(assignments, teacher, message):
    with pytest.raises(LtatError, match=message):
        make("self-distill", *assignments, teacher=teacher)


def test_a_teacher_with_other_classes_is_refused():
    other = build_model("small", num_classes=9)
    with pytest.raises(LtatError, match="9 classes"):
        make("self-distill", teacher=other)
