"""Natural training: nothing is attacked, and the rest is as for every method."""

import numpy as np
import pytest
import torch

from ltat.errors import LtatError
from tests.methods.making import attack_of, loss_of, make_method, random_batch
from tests.methods.test_attack_and_modes import buffers, network, same
from tests.methods.test_losses import Linear, cross_entropy64, gradient64, logits64
from tests.training.tiny import tiny_config

COUNTS = torch.tensor([30, 20, 10, 5])


def make(*assignments: str):
    return make_method("natural", *assignments, counts=COUNTS)


def test_the_loss_and_its_gradient_are_clean_cross_entropy(small):
    student, method = Linear(2), make()
    images = attack_of(method, student, small, torch.Generator())
    terms = loss_of(method, student, small, images)
    terms.loss.backward()
    bias = student.bias.detach().double().numpy()

    def loss64(weight: np.ndarray) -> float:
        return cross_entropy64(logits64(weight, bias, small.images), small.labels)

    weight = student.weight.detach().double().numpy()
    assert terms.loss.item() == pytest.approx(loss64(weight), rel=1e-5)
    np.testing.assert_allclose(student.weight.grad.numpy(), gradient64(loss64, weight), rtol=2e-3, atol=2e-5)


def test_no_step_of_an_attack_is_computed_and_batch_norm_sees_the_clean_images_once():
    batch = random_batch(6, 1, 8, 8, classes=4)
    model, twin, method = network(0), network(0), make("attack.steps=50", "attack.mode=train")
    forwards = []
    model.register_forward_hook(lambda *_: forwards.append(1))
    images = attack_of(method, model, batch, torch.Generator())
    assert images is batch.images and not forwards
    loss_of(method, model, batch, images)
    twin(batch.images)
    assert len(forwards) == 1 and same(buffers(twin), model)


def test_evaluation_attacks_within_the_radius_that_is_set():
    assert make().threat.eps == 8 / 255
    other = make("attack.eps=0.5", "attack.step_size=0.1", "attack.norm=l2").threat
    assert (other.eps, other.norm) == (0.5, "l2")


@pytest.mark.parametrize("where", ["val", "test"])
def test_the_best_checkpoint_is_chosen_by_clean_accuracy_unless_another_is_named(where: str):
    asked = tiny_config("method=natural", f"select.set={where}", "data.name=digits")
    assert asked.config.select.metric == "pgd2"  # named by the tiny run
    assert make(f"select.set={where}").config.select.metric == "clean"


def test_a_setting_of_another_method_is_refused_in_one_sentence():
    with pytest.raises(LtatError, match=r"^method natural has no setting 'mart'[^\n]*$"):
        make("mart.beta=1")
