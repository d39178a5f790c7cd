"""RobustLT's radius: the formula, whom the ball and the step reach, and that evaluation never sees it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from ltat.attacks import STARTS, ThreatModel
from ltat.attacks.modes import MODES
from ltat.config import load_config
from ltat.data import Batch
from ltat.errors import LtatError
from ltat.methods import METHODS, find_method
from ltat.methods.radius import class_radii, radius_scale, ramp
from ltat.models import build_model
from ltat.training import prepare, train
from tests.methods.making import SERVED, attack_of, make_method, step_of
from tests.training.test_resume import Interrupting, assert_same_run, metrics
from tests.training.tiny import tiny_config

CIFAR10_LT_50 = [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100]
COUNTS = torch.tensor([64, 16, 8, 1])
ON = ("radius.share=0.4",)
LAST = {"epoch": 10, "epochs": 10}


def by_hand(counts: list[int], alpha: float) -> list[float]:
    g = [math.sqrt(math.log(max(counts) / n)) for n in counts]
    tau = alpha / sum(n / sum(counts) * g_c for n, g_c in zip(counts, g, strict=True))
    return [(1 - alpha) + tau * g_c for g_c in g]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.4, 1.0])
@pytest.mark.parametrize("counts", [CIFAR10_LT_50, COUNTS.tolist(), [7, 7, 7, 3]])
def test_the_radii_are_the_formulas_and_their_mean_over_the_images_is_one(alpha: float, counts: list[int]):
    radii = class_radii(torch.tensor(counts), alpha)
    assert radii.dtype == torch.float64
    np.testing.assert_allclose(radii.numpy(), by_hand(counts, alpha), rtol=1e-13)
    assert abs(np.average(radii.numpy(), weights=counts) - 1) < 1e-14
    assert radii[counts.index(max(counts))] == pytest.approx(1 - alpha)
    assert alpha == 0 or radii.argmax() == counts.index(min(counts))


def test_balanced_classes_have_the_plain_radius():
    assert class_radii(torch.full((5,), 40), 0.3).tolist() == [1.0] * 5


def test_a_class_without_images_has_a_finite_radius_and_changes_no_other():
    with_empty = class_radii(torch.tensor([100, 10, 1, 0]), 0.3)
    assert with_empty.isfinite().all() and with_empty[3] == with_empty[2]
    torch.testing.assert_close(with_empty[:3], class_radii(torch.tensor([100, 10, 1]), 0.3))


def test_the_ramp_runs_from_zero_to_one_over_its_share_of_the_epochs():
    assert [ramp(0.5, epoch, 8) for epoch in range(1, 9)] == [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    assert [ramp(0.0, epoch, 8) for epoch in (1, 8)] == [1, 1]


@pytest.fixture
def batch() -> Batch:
    images = 0.3 + 0.4 * torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.tensor([0, 1, 2, 3, 3, 2, 1, 0]), torch.arange(8))


def network(seed: int = 0):
    torch.manual_seed(seed)
    return build_model("small", num_classes=4, in_channels=1).train()


def attacked(method, batch: Batch, epoch: int = 10, epochs: int = 10) -> torch.Tensor:
    return attack_of(method, network(), batch, torch.Generator().manual_seed(3), epoch, epochs)


def test_one_step_of_a_class_is_its_share_of_the_step(batch: Batch):
    one = ("attack.steps=1", "attack.start=zero", "attack.step_size=0.01", "attack.eps=0.05", "radius.ramp_share=1")
    x_adv = attacked(make_method("pgd-at", *ON, *one, counts=COUNTS), batch, epoch=4)
    x = batch.images.clone().requires_grad_()
    F.cross_entropy(network().eval()(x), batch.labels, reduction="sum").backward()
    radii = torch.tensor(by_hand(COUNTS.tolist(), 0.4))[batch.labels].float().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(x_adv, batch.images + 0.01 * 0.3 * radii * x.grad.sign(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("mode", MODES)
def test_every_image_stays_in_the_ball_of_its_class_and_rare_ones_leave_the_plain_one(norm, start, mode, batch: Batch):
    eps = 0.1 if norm == "linf" else 1.0
    settings = (f"attack.norm={norm}", f"attack.start={start}", f"attack.eps={eps}", f"attack.step_size={eps / 2}")
    method, model = make_method("pgd-at", *ON, *settings, f"attack.mode={mode}", counts=COUNTS), network()
    before = [buffer.clone() for buffer in model.buffers()]
    x_adv = attack_of(method, model, batch, torch.Generator().manual_seed(3), **LAST)
    radii = (eps * torch.tensor(by_hand(COUNTS.tolist(), 0.4))[batch.labels]).float()
    assert ThreatModel(norm=norm, eps=radii).contains(x_adv, batch.images).all()
    outside = ~ThreatModel(norm=norm, eps=eps).contains(x_adv, batch.images)
    assert outside.tolist() == (radii > eps).tolist() and outside.any() and not outside.all()
    unmoved = all(buffer.equal(value) for buffer, value in zip(model.buffers(), before, strict=True))
    assert unmoved == (mode != "train")


def test_in_the_first_epoch_of_a_ramp_the_images_are_clean(batch: Batch):
    method = make_method("pgd-at", "radius.ramp_share=0.5", counts=COUNTS)
    assert attacked(method, batch, epoch=1).equal(batch.images)
    plain = attacked(make_method("pgd-at", counts=COUNTS), batch)
    assert attacked(method, batch, epoch=6).equal(plain)  # a ramp alone leaves one radius for all


def test_left_alone_it_changes_no_bit(batch: Batch):
    off = make_method("pgd-at", "radius.share=0", counts=COUNTS)
    assert radius_scale(off.config.radius, step_of(off, network(), batch)) is None
    balanced = make_method("pgd-at", *ON, counts=torch.full((4,), 9))
    assert attacked(balanced, batch).equal(attacked(off, batch))


def test_the_counts_are_those_of_the_epochs_plan(batch: Batch):
    method = make_method("pgd-at", *ON, counts=COUNTS)
    turned = make_method("pgd-at", *ON, counts=COUNTS.flip(0))
    SERVED[method] = COUNTS.flip(0)
    assert attacked(method, batch).equal(attacked(turned, batch))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_that_attacks_takes_it_and_is_evaluated_in_the_plain_ball(name: str, batch: Batch):
    settings = ("attack.eps=0.1", "attack.step_size=0.05", "train.epochs=10")
    method = make_method(name, *ON, *settings, counts=COUNTS, teacher=network(1))
    radii = 0.1 * torch.tensor(by_hand(COUNTS.tolist(), 0.4))[batch.labels].float()
    x_adv = attacked(method, batch)
    if name == "natural":
        assert x_adv.equal(batch.images)
        return
    assert ThreatModel(eps=radii).contains(x_adv, batch.images).all()
    assert not ThreatModel(eps=0.1).contains(x_adv, batch.images).all()
    assert method.threat == ThreatModel(eps=0.1)


def test_clean_epochs_stay_clean(batch: Batch):
    method = make_method("taet", *ON, "train.epochs=10", counts=COUNTS)
    assert attacked(method, batch, epoch=4).equal(batch.images)


def test_exchanged_step_and_radius_grow_together(batch: Batch):
    swapped = ("kd.swap_step_eps=true", "attack.eps=0.1", "attack.step_size=0.02")
    x_adv = attacked(make_method("rslad", *ON, *swapped, counts=COUNTS, teacher=network(1)), batch)
    radii = 0.02 * torch.tensor(by_hand(COUNTS.tolist(), 0.4))[batch.labels].float()
    distance = (x_adv - batch.images).flatten(1).abs().amax(1)
    torch.testing.assert_close(distance, radii, rtol=1e-4, atol=1e-6)


def run(folder: Path, *assignments: str) -> Path:
    train(tiny_config(*assignments), folder)
    return folder


RAMPED = ("method=at-bsl", "radius.share=0.4", "radius.ramp_share=0.7")


def test_an_interrupted_run_ends_as_a_whole_one_and_is_reported_in_the_plain_ball(tmp_path):
    whole = run(tmp_path / "whole", *RAMPED)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(*RAMPED), tmp_path / "parts", reporter=Interrupting(8))
    train(tiny_config(*RAMPED), tmp_path / "parts", resume=True)
    assert_same_run(whole, tmp_path / "parts")
    plain = run(tmp_path / "plain", "method=at-bsl")
    assert metrics(whole)[0]["loss"] < metrics(plain)[0]["loss"]  # the ball of the first epoch is a point
    told = [json.loads((folder / "report.json").read_text())["last"]["pgd2"]["attack"] for folder in (whole, plain)]
    assert told[0] == told[1] and told[0]["step_size"] == 0.15 / 4


@pytest.mark.parametrize("name", METHODS)
def test_the_epoch_without_a_ball_is_rehearsed_with_every_method(name: str):
    taught = ("teacher.train=balanced",) if "teacher" in METHODS[name].Config.model_fields else ()
    prepare(tiny_config(f"method={name}", *taught, "radius.share=1", "radius.ramp_share=1"))


def test_half_precision_stays_finite(tmp_path):
    folder = run(tmp_path, *RAMPED, "train.precision=bf16", "train.epochs=2")
    assert all(np.isfinite(row["loss"]) for row in metrics(folder))
    assert all(value.isfinite().all() for value in load_file(folder / "last.safetensors").values())


@pytest.mark.parametrize(
    "setting", ["radius.share=1.5", "radius.share=-0.1", "radius.ramp_share=2", "radius.ramp_share=nan"]
)
def test_settings_out_of_range_stop_before_training(setting: str):
    with pytest.raises(LtatError, match=setting.partition("=")[0]):
        tiny_config("method=pgd-at", setting)


@pytest.mark.parametrize(("recipe", "alpha", "share"), [("c10-ir50", 0.3, 0.8), ("c100-ir10", 0.4, 0.6)])
def test_the_recipes_keep_the_settings_of_the_reference_code(recipe: str, alpha: float, share: float):
    config = load_config(lambda name: find_method(name).Config, recipe=f"robustlt/{recipe}-wrn28-10/at-bsl").config
    assert (config.radius.share, config.radius.ramp_share) == (alpha, share)
    assert (config.attack.start, config.attack.mode) == ("uniform_clamp", "train_frozen_stats")
    assert (config.attack.eps, config.attack.step_size, config.optim.nesterov) == (8 / 255, 2 / 255, True)
