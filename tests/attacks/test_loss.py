from dataclasses import replace

import torch

from ltat.attacks.loss import ModelLoss


def test_a_loss_that_is_not_scaled_is_the_objectives_own_and_costs_no_multiplication():
    returned = []

    def objective(logits, y, x_adv):
        returned.append(logits.sum(dim=1))
        return returned[-1]

    x = torch.rand(2, 3, 2, 2)
    loss = ModelLoss(lambda images: images.flatten(1), torch.tensor([0, 1]), objective)
    assert loss(x) is returned[-1]
    assert torch.equal(replace(loss, scale=4.0)(x), 4 * returned[-1])
