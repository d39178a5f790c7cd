"""Every step of a recipe shows the network as many batches in training mode as the method's own code does."""

import pytest
import torch
from torch import Tensor, nn

from ltat.config import RunConfig, load_config
from ltat.config.resolving import resolve
from ltat.errors import LtatError
from ltat.methods import Method, find_method
from ltat.methods.awp import perturbed_weights
from ltat.methods.divergences import kl
from ltat.models import build_model
from tests.methods.making import SERVED, attack_of, loss_of, make_method, random_batch, step_of
from tests.methods.test_distillation import norm_of

CLASSES = 10
COUNTS = torch.arange(20, 20 - CLASSES, -1)
LAST = {"epoch": 1000, "epochs": 1000}


def network(seed: int, classes: int = CLASSES) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("small", num_classes=classes, in_channels=1).train()


def from_recipe(recipe: str, classes: int = CLASSES) -> Method:
    config: RunConfig = resolve(load_config(lambda name: find_method(name).Config, recipe=recipe), classes)
    counts = torch.arange(2 * classes, classes, -1)
    taught = "igdm" in recipe or recipe.startswith(("ard", "rslad", "adaad"))
    cls = find_method(config.method)
    method = cls(config, counts, network(1, classes).eval() if taught else None)
    SERVED[method] = counts
    return method


def forwards_of_a_step(method: Method, epoch: int, epochs: int) -> int:
    model, batch = method.prepare_model(network(0)), random_batch(6, 1, 8, 8, classes=CLASSES)
    norm = norm_of(model)
    method.begin_epoch(epoch)
    x_adv = attack_of(method, model, batch, torch.Generator().manual_seed(0), epoch, epochs)
    step = step_of(method, model, batch, x_adv, epoch, epochs)
    with perturbed_weights(step, method.config, method.loss):
        terms = method.loss(step)
    method.end_step(step, terms)
    return int(norm.num_batches_tracked)


@pytest.mark.parametrize(
    ("recipe", "forwards"),
    [
        ("pgd-at/rice", 13),  # 10 steps, the attack's last look at x', x', x for the log
        ("awp/faithful", 13),
        ("at-bsl/faithful", 1),
        ("trades/faithful", 3),
        ("mart/faithful", 2),
        ("reat/faithful", 1),
        ("robal/faithful-c10-r", 4),
        ("taet/faithful-ir50", 2),
        ("ard/faithful", 12),
        ("rslad/faithful", 2),
        ("adaad/faithful", 2),
        ("ard+igdm/faithful", 3),
        ("rslad+igdm/faithful", 3),
        ("adaad+igdm/faithful", 4),
    ],
)
def test_batch_norm_moves_as_often_as_in_the_reference_code(recipe: str, forwards: int):
    assert forwards_of_a_step(from_recipe(recipe), **LAST) == forwards


@pytest.mark.parametrize("recipe", ["taet/faithful-ir10", "taet/faithful-ir100", "taet/faithful-dermamnist"])
def test_taets_clean_stage_shows_every_batch_twice(recipe: str):
    assert forwards_of_a_step(from_recipe(recipe), 1, 100) == 2


def test_the_attacks_last_forward_is_of_the_finished_images():
    batch = random_batch(6, 1, 8, 8, classes=CLASSES)
    plain, looked = network(0), network(0)
    settings = ("attack.mode=train", "attack.start=zero")
    images = [
        attack_of(
            make_method("pgd-at", *settings, f"attack.final_forward={final}", counts=COUNTS),
            model,
            batch,
            torch.Generator(),
            **LAST,
        )
        for model, final in ((plain, "false"), (looked, "true"))
    ]
    assert torch.equal(*images)
    plain(images[0])
    assert torch.equal(norm_of(plain).running_mean, norm_of(looked).running_mean)


class Order(nn.Module):
    """A network that notes which of the given images it sees."""

    def __init__(self, model: nn.Module, views: dict[str, Tensor]) -> None:
        super().__init__()
        self.model, self.views, self.seen = model, views, []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(next(name for name, view in self.views.items() if torch.allclose(images, view, atol=1e-6)))
        return self.model(images)


def test_the_two_forwards_more_of_adaad_with_igdm_change_neither_loss_nor_gradient():
    batch = random_batch(6, 1, 8, 8, classes=CLASSES)
    x_adv = (batch.images + 0.05).clamp(max=1)
    views = {"x": batch.images, "x'": x_adv, "x-d": 2 * batch.images - x_adv}
    gradients, losses = [], []
    for setting, order in (("false", ["x'", "x-d"]), ("true", ["x'", "x", "x-d", "x'"])):
        model = Order(network(0), views)
        method = make_method("adaad+igdm", f"kd.extra_forwards={setting}", counts=COUNTS, teacher=network(1).eval())
        terms = loss_of(method, model, batch, x_adv, **LAST)
        terms.loss.backward()
        assert model.seen == order
        losses.append(terms.loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_the_forwards_more_are_refused_where_one_forward_sees_both_sides():
    settings = ("kd.extra_forwards=true", "igdm.bn=concat")
    with pytest.raises(LtatError, match=r"kd\.extra_forwards=true.*igdm\.bn is concat"):
        make_method("adaad+igdm", *settings, counts=COUNTS, teacher=network(1))


@pytest.mark.parametrize("classes", [10, 100])
def test_rslad_with_igdm_weighs_its_base_by_the_mean_over_images_alone(classes: int):
    method, batch = from_recipe("rslad+igdm/faithful", classes), random_batch(8, 1, 8, 8, classes=classes)
    x_adv = (batch.images + 0.05).clamp(max=1)
    teacher, student = network(1, classes).eval()(batch.images), network(0, classes)
    adv, clean = kl(teacher, student(x_adv)), kl(teacher, student(batch.images))
    expected = (5 * adv + clean).item() / 6
    assert method.distil(step_of(method, network(0, classes), batch, x_adv)).loss.item() == pytest.approx(
        expected, rel=1e-5
    )
