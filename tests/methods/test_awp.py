"""AWP: the perturbation against arithmetic without autograd, what it leaves behind, and whole runs of every method."""

import copy
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from ltat.config import Asked, AwpSection, RunConfig, load_config
from ltat.config.resolving import resolve
from ltat.data import Batch
from ltat.errors import LtatError
from ltat.methods import METHODS, LossTerms, Method, Step, find_method
from ltat.methods.awp import adversarial_weights, perturbed_weights
from ltat.training import Trainer, prepare, train
from ltat.training.schedule import learning_rate
from ltat.training.stage import Stage
from tests.methods.making import SERVED, loss_of, make_method, step_of
from tests.training.test_resume import Interrupting, assert_same_run, metrics
from tests.training.tiny import complete_config, tiny_config

GAMMA = 0.05
X = np.random.default_rng(0).standard_normal((5, 3))
Y = np.array([0, 1, 2, 1, 0])


class Tiny(nn.Module):
    """tanh, two layers, and what AWP must leave alone: a bias, a vector called weight, a matrix not called so."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(1)
        self.first = nn.Linear(3, 4, dtype=torch.float64)
        self.second = nn.Linear(4, 3, dtype=torch.float64)
        self.weight_vector = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.mixing = nn.Parameter(torch.eye(3, dtype=torch.float64))
        for p in self.parameters():
            p.data = torch.from_numpy(rng.standard_normal(p.shape))

    def forward(self, x):
        return (self.second(torch.tanh(self.first(x))) * self.weight_vector) @ self.mixing


class Mean(Method):
    """A method of one's own: cross-entropy."""

    Config = RunConfig

    def loss(self, step):
        logits = step.model(step.x_adv)
        return LossTerms(F.cross_entropy(logits, step.batch.labels), logits, {})


def mean_method(**awp) -> Mean:
    method = Mean(resolve(Asked(RunConfig(method="mean", awp=awp)), 3), torch.tensor([3, 2, 1]))
    SERVED[method] = torch.tensor([3, 2, 1])
    return method


def perturbed(method: Method, model: nn.Module, batch: Batch, x_adv: torch.Tensor, epoch=1, epochs=1):
    return perturbed_weights(step_of(method, model, batch, x_adv, epoch, epochs), method.config, method.loss)


def run(folder: Path, *assignments: str) -> Path:
    train(tiny_config(*assignments), folder)
    return folder


def values(model: nn.Module) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def loss_by_hand(w: dict[str, np.ndarray]) -> float:
    hidden = np.tanh(X @ w["first.weight"].T + w["first.bias"])
    logits = ((hidden @ w["second.weight"].T + w["second.bias"]) * w["weight_vector"]) @ w["mixing"]
    return float(np.mean([np.log(np.exp(z - z[y]).sum()) for z, y in zip(logits, Y, strict=True)]))


def gradient_by_hand(w: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Central differences."""
    gradient, step = np.zeros_like(w[name]), 1e-5
    for at in np.ndindex(*gradient.shape):
        up, down = ({k: v.copy() for k, v in w.items()} for _ in range(2))
        up[name][at] += step
        down[name][at] -= step
        gradient[at] = (loss_by_hand(up) - loss_by_hand(down)) / (2 * step)
    return gradient


def perturbed_by_hand(w: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    moved = dict(w)
    for name in ("first.weight", "second.weight"):
        g = gradient_by_hand(w, name)
        moved[name] = w[name] + GAMMA * np.sqrt((w[name] ** 2).sum() / (g**2).sum()) * g
    return moved


def the_batch() -> Batch:
    return Batch(torch.from_numpy(X), torch.from_numpy(Y), torch.arange(5))


def test_loss_gradient_and_step_are_those_of_arithmetic_at_the_perturbed_weights():
    model, method, batch, x_adv = Tiny(), mean_method(gamma=GAMMA), the_batch(), torch.from_numpy(X)
    batch = batch._replace(images=torch.zeros_like(x_adv))
    w = values(model)
    with perturbed(method, model, batch, x_adv):
        inside = values(model)
        assert all(p.grad is None for p in model.parameters())
        loss = loss_of(method, model, batch, x_adv).loss
        loss.backward()
    expected = perturbed_by_hand(w)
    assert loss.item() == pytest.approx(loss_by_hand(expected), rel=1e-9)
    assert loss.item() > loss_by_hand(w)
    torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.3).step()
    for name, p in model.named_parameters():
        np.testing.assert_allclose(inside[name], expected[name], rtol=1e-7, atol=1e-9)
        stepped = w[name] - 0.1 * (gradient_by_hand(expected, name) + 0.3 * w[name])
        np.testing.assert_allclose(p.detach().numpy(), stepped, rtol=1e-7, atol=1e-8)


def test_the_weights_come_back_bit_for_bit_also_after_an_exception():
    torch.manual_seed(0)
    model, method, batch = Tiny().float(), mean_method(gamma=GAMMA), the_batch()
    batch = batch._replace(images=batch.images.float())
    w = values(model)
    with pytest.raises(ZeroDivisionError), perturbed(method, model, batch, batch.images):
        assert not np.array_equal(values(model)["first.weight"], w["first.weight"])
        raise ZeroDivisionError
    assert all(values(model)[name].tobytes() == w[name].tobytes() for name in w)


def test_a_gradient_that_is_not_finite_moves_nothing():
    model = Tiny()
    w = values(model)

    def loss() -> torch.Tensor:
        broken = (model.first.weight * torch.tensor([1.0, np.inf, 1.0])).sum()
        return broken + model.second.weight.square().sum()

    with adversarial_weights(model, loss, GAMMA):
        inside = values(model)
    assert np.array_equal(inside["first.weight"], w["first.weight"])
    np.testing.assert_allclose(inside["second.weight"], (1 + GAMMA) * w["second.weight"])


def test_a_weight_outside_the_loss_or_without_gradient_stays():
    model = Tiny()
    model.first.requires_grad_(False)
    w = values(model)
    with adversarial_weights(model, lambda: model.first.bias.sum() * 0 + model.mixing.sum(), GAMMA):
        assert all(np.array_equal(value, w[name]) for name, value in values(model).items())


def one_step(stage: Stage) -> Stage:
    trainer = Trainer(stage)
    trainer.network.train()
    trainer.train_step(trainer.step(next(iter(stage.loader.epoch(1))), 3, 0, trainer.class_counts(3)))
    return stage


def test_batch_norm_moves_by_the_perturbed_forward_alone():
    stage = prepare(tiny_config("method=pgd-at", f"awp.gamma={GAMMA}")).student
    model, method, batch = stage.model.train(), stage.method, next(iter(stage.loader.epoch(1)))
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    step = Step(model, batch, 1, 3, torch.ones(10), batch.images)
    with perturbed_weights(step, method.config, method.loss):
        assert all(buffer.equal(before[name]) for name, buffer in model.named_buffers())
        method.loss(step)
    assert model.bn1.num_batches_tracked == 1 and not model.bn1.running_mean.equal(before["bn1.running_mean"])


def taught(method: str) -> tuple[str, ...]:
    return ("teacher.train=balanced",) if "teacher" in METHODS[method].Config.model_fields else ()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_it_and_moves_its_statistics_as_often_as_without(method: str):
    stage = prepare(tiny_config(f"method={method}", *taught(method), f"awp.gamma={GAMMA}")).student
    without = copy.deepcopy(stage)
    without.config = stage.config.model_copy(update={"awp": AwpSection()})
    plain, perturbed = one_step(without).model, one_step(stage).model
    for (name, p), q in zip(plain.named_parameters(), perturbed.parameters(), strict=True):
        assert q.isfinite().all() and (p.ndim == 1 or not p.equal(q)), name
    assert plain.bn1.num_batches_tracked == perturbed.bn1.num_batches_tracked
    if method == "reat":
        assert stage.method.counting.sum() == 64


def test_without_gamma_a_run_is_that_of_a_method_without_the_hook(tmp_path, monkeypatch):
    off = run(tmp_path / "off", "method=pgd-at", "awp.gamma=0", "awp.warmup=1")
    monkeypatch.setattr("ltat.training.trainer.perturbed_weights", lambda *_: nullcontext())
    assert_same_run(off, run(tmp_path / "bare", "method=pgd-at"))


def test_it_begins_after_the_warm_up(tmp_path):
    plain, warm, early = (
        metrics(run(tmp_path / name, "method=pgd-at", *settings))
        for name, settings in {
            "plain": (),
            "warm": (f"awp.gamma={GAMMA}", "awp.warmup=2"),
            "early": (f"awp.gamma={GAMMA}",),
        }.items()
    )
    assert warm[:2] == plain[:2] and warm[2]["loss"] > plain[2]["loss"]
    assert early[0]["loss"] > plain[0]["loss"]


@pytest.mark.parametrize("method", ["at-bsl", "reat"])
def test_an_interrupted_run_ends_as_a_whole_one(method: str, tmp_path):
    settings = (f"method={method}", "awp.gamma=0.01", "awp.warmup=1", "attack.mode=train")
    whole = run(tmp_path / "whole", *settings)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(*settings), tmp_path / "parts", reporter=Interrupting(15))
    train(tiny_config(*settings), tmp_path / "parts", resume=True)
    assert_same_run(whole, tmp_path / "parts")


def test_half_precision_is_perturbed_and_stays_finite(tmp_path):
    settings = ("method=trades", "train.epochs=2", "train.precision=bf16")
    folder, plain = run(tmp_path / "awp", *settings, f"awp.gamma={GAMMA}"), run(tmp_path / "plain", *settings)
    weights, others = (load_file(run / "last.safetensors") for run in (folder, plain))
    assert all(np.isfinite(row["loss"]) for row in metrics(folder))
    assert all(value.isfinite().all() for value in weights.values())
    assert not weights["conv1.weight"].equal(others["conv1.weight"])


def test_it_learns_all_the_same(tmp_path):
    folder = run(
        tmp_path / "run",
        "method=pgd-at",
        "awp.gamma=0.01",
        "train.epochs=6",
        "train.batch_size=16",
        "eval.n_examples=200",
    )
    losses = [row["loss"] for row in metrics(folder)]
    assert losses[-1] < 0.9 * losses[0]
    assert json.loads((folder / "report.json").read_text())["last"]["pgd2"]["overall"] > 20  # chance is 10


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("awp.gamma=-0.1",), r"awp\.gamma"),
        (("awp.gamma=nan",), r"awp\.gamma"),
        (("awp.warmup=1.5",), r"awp\.warmup"),
        (("awp.gamma=0.01", "awp.warmup=3"), r"awp\.warmup=3 .* 3 epochs"),
        (("awp.gamma=0.01", "train.precision=fp16"), "bf16"),
    ],
)
def test_settings_that_cannot_be_meant_stop_before_training(settings, told, tmp_path):
    with pytest.raises(LtatError, match=told):
        train(tiny_config("method=pgd-at", *settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Frozen(Mean):
    """Trains biases only."""

    def prepare_model(self, model):
        for p in model.parameters():
            p.requires_grad_(p.ndim == 1)
        return model


@pytest.mark.parametrize("warmup", [0, 2])
def test_a_network_without_a_weight_to_perturb_stops_before_training(warmup: int, tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "frozen", Frozen)
    train(tiny_config("method=frozen"), tmp_path / "plain")
    with pytest.raises(LtatError, match=r"set awp\.gamma=0"):
        train(tiny_config("method=frozen", "awp.gamma=0.01", f"awp.warmup={warmup}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_teacher_stage_is_trained_without():
    config = complete_config("method=self-distill", "awp.gamma=0.01", "radius.share=0.3")
    teacher = find_method("self-distill").teacher_config(config)
    assert (teacher.awp.gamma, teacher.radius.share) == (0, 0)


@pytest.mark.parametrize(
    ("recipe", "gamma", "first", "drops"),
    [("awp/faithful", 0.01, 1, [101, 151]), ("trades/awp", 0.005, 10, [100, 150])],
)
def test_a_recipe_perturbs_and_drops_the_rate_in_the_epochs_of_the_reference_code(recipe, gamma, first, drops):
    config = load_config(lambda name: find_method(name).Config, recipe=recipe).config
    method = make_method(
        config.method, f"awp.gamma={config.awp.gamma}", f"awp.warmup={config.awp.warmup}", counts=torch.ones(3)
    )
    around = [
        perturbed(method, nn.Linear(2, 3), the_batch(), torch.zeros(5, 2), epoch=epoch, epochs=200)
        for epoch in range(1, 201)
    ]
    assert [isinstance(context, nullcontext) for context in around] == [epoch < first for epoch in range(1, 201)]
    rates = [learning_rate(config.schedule, config.optim.lr, epoch, 200) for epoch in range(1, 201)]
    assert [epoch for epoch in range(2, 201) if rates[epoch - 1] < rates[epoch - 2]] == drops
    assert (config.awp.gamma, config.train.epochs, config.train.drop_last) == (gamma, 200, False)
