"""Plain adversarial training: what its reference code does beside the loss."""

import pytest
import torch
import torch.nn.functional as F

from ltat.training import Trainer, prepare
from tests.training.tiny import tiny_config


def after_first_step(*settings: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The network's state after its first step, and the clean images of that step."""
    stage = prepare(tiny_config("method=pgd-at", "train.epochs=1", *settings)).student
    images = next(iter(stage.loader.epoch(1))).images
    states: list[dict[str, torch.Tensor]] = []
    Trainer(
        stage, lambda _: states.append({name: value.clone() for name, value in stage.model.state_dict().items()})
    ).run_epoch()
    return states[0], images


def test_the_clean_forward_moves_batch_norm_by_the_new_weights_and_nothing_else():
    plain, images = after_first_step()
    extra, _ = after_first_step("pgd_at.clean_forward=true")
    assert all(plain[name].equal(extra[name]) for name in plain if name.endswith(("weight", "bias")))
    seen = F.conv2d(images.double(), plain["conv1.weight"].double(), padding=1).transpose(0, 1).flatten(1)
    mean = 0.9 * plain["bn1.running_mean"].double() + 0.1 * seen.mean(1)
    var = 0.9 * plain["bn1.running_var"].double() + 0.1 * seen.var(1)
    torch.testing.assert_close(extra["bn1.running_mean"].double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(extra["bn1.running_var"].double(), var, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("setting", "forwards"), [("false", 1), ("true", 2)])
def test_the_clean_forward_is_off_unless_asked_for(setting: str, forwards: int):
    state, _ = after_first_step(f"pgd_at.clean_forward={setting}")
    assert state["bn1.num_batches_tracked"].item() == forwards
    assert after_first_step()[0]["bn1.num_batches_tracked"].item() == 1
