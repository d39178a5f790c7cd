"""Each choice of ``loss.cls``: its value and gradient, the epoch in which it changes, the network it asks for."""

import numpy as np
import pytest
import torch
from torch import nn

from ltat.data import Batch
from ltat.errors import LtatError
from ltat.methods import find_method
from ltat.methods.classification import (
    LOSSES,
    ClassificationMethod,
    effective_number_weights,
    ldam_margins,
    smoothed,
)
from ltat.models import build_model, load_model, save_model
from tests.methods.making import loss_of, make_method, step_of
from tests.methods.test_losses import gradient64

CLASSES, IMAGES = 5, 9
COUNTS = torch.tensor([4000, 300, 60, 12, 3])
N = COUNTS.numpy().astype(np.float64)
LAST = {"epoch": 10, "epochs": 10}
TAKING = ["pgd-at", "at-bsl", "reat", "self-distill"]


class Table(nn.Module):
    """One row of free logits per image: the image's first pixel is its number."""

    num_classes = CLASSES

    def __init__(self, seed: int = 0, scale: float = 3.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.rows = nn.Parameter(scale * torch.randn(IMAGES, CLASSES, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows[(x.flatten(1)[:, 0] * IMAGES).round().long()]


LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 0, 1, 4])
PIXELS = (torch.arange(IMAGES) / IMAGES).view(-1, 1, 1, 1)
BATCH = Batch(PIXELS, LABELS, torch.arange(IMAGES))


def make(
    cls: str, *assignments: str, name: str = "pgd-at", counts: torch.Tensor = COUNTS, **given
) -> ClassificationMethod:
    method = make_method(name, f"loss.cls={cls}", *assignments, counts=counts, **given)
    assert isinstance(method, ClassificationMethod)
    return method


def nll(z: np.ndarray) -> np.ndarray:
    """- log p_y of each image, float64."""
    top = z.max(axis=1, keepdims=True)
    return (top + np.log(np.exp(z - top).sum(axis=1, keepdims=True)))[:, 0] - z[np.arange(len(z)), LABELS.numpy()]


def weighted(losses: np.ndarray, beta: float) -> float:
    """sum w l / sum w with the weights of Cui et al., by their geometric series 1 + beta + ... + beta^(n - 1)."""
    w = np.array([1 / sum(beta**k for k in range(int(n))) for n in N])[LABELS.numpy()]
    return float((w * losses).sum() / w.sum())


def lowered(z: np.ndarray, margin: float, scale: float) -> np.ndarray:
    z, roots = z.copy(), N**0.25
    z[np.arange(len(z)), LABELS.numpy()] -= (scale * margin * roots.min() / roots)[LABELS.numpy()]
    return z


def smoothed64(z: np.ndarray, tau: float, share: float) -> float:
    """The mean over the images of - sum_c t_c log p_c, t mixed with n^tau / sum n^tau."""
    targets = (1 - share) * np.eye(CLASSES)[LABELS.numpy()] + share * N**tau / (N**tau).sum()
    z = z + tau * np.log(N)
    return float(-(targets * (z - np.log(np.exp(z).sum(axis=1, keepdims=True)))).sum(axis=1).mean())


FORMULAS = {
    "ce smoothed": (["loss.smoothing=0.3"], lambda z: smoothed64(z, 0, 0.3)),
    "bsl smoothed": (["bsl.tau=0.7", "loss.smoothing=0.2"], lambda z: smoothed64(z, 0.7, 0.2)),
    "ce": ([], lambda z: nll(z).mean()),
    "bsl": (["bsl.tau=0.7"], lambda z: nll(z + 0.7 * np.log(N)).mean()),
    "ldam-drw": (["loss.scale=4", "loss.drw=1"], lambda z: nll(lowered(z, 0.5, 4)).mean()),
    "ldam-drw weighted": (
        ["loss.scale=4", "loss.margin=0.3", "loss.drw=0", "loss.beta=0.99"],
        lambda z: weighted(nll(lowered(z, 0.3, 4)), 0.99),
    ),
    "cb": (["loss.beta=0.999"], lambda z: weighted(nll(z), 0.999)),
    "cb unweighted": (["loss.beta=0"], lambda z: nll(z).mean()),
    "focal": ([], lambda z: ((1 - np.exp(-nll(z))) ** 2 * nll(z)).mean()),
    "focal steep": (["loss.gamma=0.5"], lambda z: ((1 - np.exp(-nll(z))) ** 0.5 * nll(z)).mean()),
    "focal flat": (["loss.gamma=0"], lambda z: nll(z).mean()),
}


@pytest.mark.parametrize("choice", FORMULAS)
def test_value_and_gradient_are_those_of_the_formula(choice: str):
    assignments, formula = FORMULAS[choice]
    model = Table()
    terms = loss_of(make(choice.split(maxsplit=1)[0], *assignments), model, BATCH, PIXELS, epoch=2, epochs=3)
    terms.loss.backward()
    z = model.rows.detach().double().numpy()
    assert terms.loss.item() == pytest.approx(formula(z), rel=1e-5)
    assert terms.logs["cls"].item() == terms.loss.item()
    np.testing.assert_allclose(model.rows.grad.numpy(), gradient64(formula, z), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("cls", LOSSES)
@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
@pytest.mark.parametrize("right", [True, False])
def test_a_gap_of_200_leaves_value_and_gradient_finite(cls: str, gamma: float, right: bool):
    model = Table()
    with torch.no_grad():
        model.rows.copy_(200.0 * torch.nn.functional.one_hot(LABELS if right else (LABELS + 1) % CLASSES, CLASSES))
    loss = loss_of(make(cls, f"loss.gamma={gamma}"), model, BATCH, PIXELS, **LAST).loss
    loss.backward()
    assert loss.isfinite() and model.rows.grad.isfinite().all()
    assert right or loss > 150


@pytest.mark.parametrize("cls", LOSSES)
def test_the_gradient_sums_to_zero_over_the_classes(cls: str):
    model = Table()
    loss_of(make(cls), model, BATCH, PIXELS, **LAST).loss.backward()
    assert model.rows.grad.abs().max() > 1e-2
    assert model.rows.grad.sum(dim=1).abs().max() < 1e-6


@pytest.mark.parametrize("cls", ["bsl", "cb"])
def test_equal_counts_make_it_plain_cross_entropy(cls: str):
    equal = torch.full((CLASSES,), 70)
    found = loss_of(make(cls, counts=equal), Table(), BATCH, PIXELS, **LAST).loss
    assert found.item() == pytest.approx(loss_of(make("ce"), Table(), BATCH, PIXELS, **LAST).loss.item(), rel=1e-6)


def test_counts_times_a_constant_leave_the_balanced_softmax():
    found = [loss_of(make("bsl", counts=k * COUNTS), Table(), BATCH, PIXELS, **LAST).loss.item() for k in (1, 7)]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_margins_and_weights_are_those_of_the_published_code():
    torch.testing.assert_close(ldam_margins(torch.tensor([16, 1]), 0.5), torch.tensor([0.25, 0.5]))
    weights = effective_number_weights(COUNTS, 0.9999)
    assert weights.sum().item() == pytest.approx(CLASSES, rel=1e-6) and weights.argmax() == 4
    assert (weights[4] / weights[0]).item() == pytest.approx((1 - 0.9999**4000) / (1 - 0.9999**3), rel=1e-5)


def test_re_weighting_begins_after_the_share_of_the_epochs():
    epochs = 200
    value = {
        e: loss_of(make("ldam-drw"), Table(), BATCH, PIXELS, epoch=e, epochs=epochs).loss.item()
        for e in (1, 160, 161, 200)
    }
    assert value[1] == value[160] != value[161] == value[200]


def test_the_choice_is_the_same_loss_in_every_method():
    for cls in LOSSES:
        alone = loss_of(make(cls), Table(), BATCH, PIXELS, **LAST)
        balanced = loss_of(make(cls, name="at-bsl"), Table(), BATCH, PIXELS, **LAST)
        assert balanced.loss.equal(alone.loss)
        student = loss_of(
            make(cls, "kd.alpha=0", name="self-distill", teacher=Table(1)), Table(), BATCH, PIXELS, **LAST
        )
        assert student.loss.item() == pytest.approx(alone.loss.item(), rel=1e-6)


@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0, 1.4])
def test_smoothing_by_the_prior_leaves_the_order_of_the_classes_at_the_minimum(tau: float):
    n, share = COUNTS.double(), 0.2
    prior = tau * n.log()
    posterior = torch.from_numpy(np.random.default_rng(0).dirichlet(np.full(CLASSES, 0.4), size=200))
    unsmoothed = posterior.log() - prior
    z = (((1 - share) * posterior + share * prior.softmax(0)).log() - prior).requires_grad_()
    expected = sum(
        (posterior[:, y] * torch.func.vmap(lambda row, y=y: smoothed_row(row, y, prior, share))(z)).sum()
        for y in range(CLASSES)
    )
    expected.backward()
    assert z.grad.abs().max() < 1e-12  # so z is the minimum
    assert z.argsort(dim=1).equal(unsmoothed.argsort(dim=1))
    uniform = ((1 - share) * posterior + share / CLASSES).log() - prior
    assert uniform.argmax(1).equal(unsmoothed.argmax(1)) == (tau == 0)


def smoothed_row(row: torch.Tensor, label: int, prior: torch.Tensor, share: float) -> torch.Tensor:
    logits = row[None]
    loss = torch.nn.functional.cross_entropy(logits + prior, torch.tensor([label]))
    return smoothed(loss, logits, prior, share)


@pytest.mark.parametrize("cls", ["cb", "focal", "ldam-drw"])
def test_smoothing_where_it_is_not_defined_is_refused(cls: str):
    with pytest.raises(LtatError, match=rf"loss\.smoothing needs loss\.cls=ce or bsl and it is {cls}"):
        make(cls, "loss.smoothing=0.1")


@pytest.mark.parametrize("mix", ["additive", "convex"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("cls", ["ce", "focal", "ldam-drw", "bsl"])
def test_the_students_two_terms_are_weighted_as_with_balanced_softmax(cls: str, biased: bool, mix: str):
    if biased and cls != "bsl":
        return
    chosen = ["loss.smoothing=0.3"] if cls == "bsl" else []
    how = ["kd.alpha=0.5", "kd.form=kl_adv", "kd.ramp=none", f"kd.mix={mix}", f"kd.on_biased={str(biased).lower()}"]
    method = make(cls, *chosen, *how, name="self-distill", teacher=Table(1))
    model = Table()
    terms = loss_of(method, model, BATCH, PIXELS, **LAST)
    share = 0.5 if mix == "convex" else 1.0
    cls_alone = loss_of(make(cls, *chosen), Table(), BATCH, PIXELS, **LAST).loss.item()
    prior = COUNTS.double().log() if biased else 0.0
    t, s = ((net.rows.detach().double() + own).log_softmax(1) for net, own in ((Table(1), 0.0), (model, prior)))
    kd = (t.exp() * (t - s)).sum().item() / IMAGES
    assert terms.loss.item() == pytest.approx(share * cls_alone + 0.5 * kd, rel=1e-5)
    assert (terms.logs["cls"].item(), terms.logs["kd"].item()) == pytest.approx((cls_alone, kd), rel=1e-5)


def test_ldam_trains_on_scaled_cosines_that_a_saved_network_keeps(tmp_path):
    method = make("ldam-drw", "loss.scale=12")
    model = method.prepare_model(build_model("small", num_classes=CLASSES, in_channels=1)).eval()
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    h, w = model.features(x).detach().double(), model.classifier.weight.detach().double()
    cosines = (h @ w.T) / (h.norm(dim=1)[:, None] * w.norm(dim=1))
    torch.testing.assert_close(model(x).double(), 12 * cosines, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(w.norm(dim=1), torch.ones(CLASSES, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    save_model(model, tmp_path / "m", extra={})
    assert load_model(tmp_path / "m")(x).equal(model(x))


def test_only_ldam_changes_the_network():
    for cls in LOSSES:
        model = make(cls).prepare_model(build_model("small", num_classes=CLASSES, in_channels=1))
        assert (model.head == "cosine") is (cls == "ldam-drw")


@pytest.mark.parametrize("name", TAKING)
def test_the_defaults_are_those_of_the_methods(name: str):
    settings = find_method(name).Config(method=name).loss
    assert settings.cls == ("ce" if name == "pgd-at" else "bsl")
    assert (settings.margin, settings.scale, settings.drw) == (0.5, 30, 0.8)
    assert (settings.beta, settings.gamma) == (0.9999, 2)


EMPTY = torch.tensor([10, 0, 5, 4, 3])


@pytest.mark.parametrize("name", ["pgd-at", "reat", "self-distill"])
def test_a_class_without_images_has_the_prior_of_one_image(name: str):
    given = {"teacher": Table(1)} if name == "self-distill" else {}
    method = make("bsl", name=name, counts=EMPTY, **given)
    found = method.tau * step_of(method, Table(), BATCH).log_prior
    torch.testing.assert_close(found, EMPTY.clamp(min=1).log())


@pytest.mark.parametrize(
    ("cls", "given", "message"),
    [
        ("nosuch", {}, "loss.cls=nosuch is unknown; choose one of ce, bsl"),
        ("cb", {"counts": EMPTY}, "class 1 has none"),
        ("ldam-drw", {"counts": EMPTY}, "class 1 has none"),
        ("ldam-drw", {"on_biased": True}, "kd.on_biased"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused_before_training(cls: str, given: dict, message: str):
    biased = ["kd.on_biased=true"] if given.get("on_biased") else []
    with pytest.raises(LtatError, match=message):
        make(cls, *biased, name="self-distill", teacher=Table(1), counts=given.get("counts", COUNTS))


def test_ldam_refuses_the_weights_of_a_teacher_with_a_linear_layer():
    teacher = build_model("small", num_classes=CLASSES, in_channels=1)
    method = make("ldam-drw", "student.init=teacher", name="self-distill", teacher=teacher)
    student = method.prepare_model(build_model("small", num_classes=CLASSES, in_channels=1))
    with pytest.raises(LtatError, match=r"student\.init=teacher"):
        method.initialise(student)


def test_ldam_refuses_a_network_whose_last_layer_it_cannot_reach():
    with pytest.raises(LtatError, match="Table has no in_features"):
        make("ldam-drw").prepare_model(Table())
