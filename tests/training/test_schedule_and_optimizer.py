"""Learning rates epoch by epoch, and which parameters decay."""

import copy

import pytest
import torch
from torch import nn

from ltat.config import OptimSection, ScheduleSection, load_config
from ltat.errors import LtatError
from ltat.methods import find_method
from ltat.training.optimizer import build_optimizer, set_learning_rate
from ltat.training.schedule import learning_rate


def rates(schedule: ScheduleSection, epochs: int, base: float = 1.0) -> list[float]:
    return [learning_rate(schedule, base, epoch, epochs) for epoch in range(1, epochs + 1)]


def changes(values: list[float]) -> dict[int, float]:
    """The epochs, from 1, in which the rate first takes a new value."""
    return {e + 1: v for e, v in enumerate(values) if e == 0 or v != values[e - 1]}


def test_at_bsl_drops_in_epochs_75_and_90_and_once_more_in_the_last():
    config = load_config(lambda m: find_method(m).Config, settings={"method": "at-bsl"}).config
    assert changes(rates(config.schedule, 100, 0.1)) == pytest.approx({1: 0.1, 75: 0.01, 90: 0.001, 100: 0.0001})


def test_the_main_method_keeps_its_rate_in_the_last_epoch():
    config = load_config(lambda m: find_method(m).Config).config
    assert changes(rates(config.schedule, 100, 0.1)) == pytest.approx({1: 0.1, 75: 0.01, 90: 0.001})
    assert changes(rates(config.teacher.schedule, 30, 0.1)) == pytest.approx({1: 0.1, 22: 0.01, 27: 0.001})


def test_milestones_from_completed_epochs_drop_one_epoch_later():
    assert changes(rates(ScheduleSection(milestones=(75, 90), milestone_base=0), 100)) == pytest.approx(
        {1: 1.0, 76: 0.1, 91: 0.01}
    )


@pytest.mark.parametrize("base", [0, 1])
def test_a_very_short_run_still_begins_at_the_base_rate(base: int):
    schedule = ScheduleSection(milestones=(0.75, 0.9, 1.0), milestone_base=base)
    assert rates(schedule, 1) == [1.0]
    assert rates(schedule, 2)[0] == 1.0


@pytest.mark.parametrize(
    ("share", "epochs", "first"), [(0.29, 100, 29), (0.57, 100, 57), (0.58, 50, 29), (0.75, 30, 22)]
)
def test_a_share_of_the_epochs_is_not_rounded_one_down_too_far(share: float, epochs: int, first: int):
    assert list(changes(rates(ScheduleSection(milestones=(share,)), epochs)))[1] == first


def test_cosine_falls_from_the_base_towards_zero():
    values = rates(ScheduleSection(kind="cosine"), 10)
    assert values[0] == 1 and values[5] == pytest.approx(0.5) and 0 < values[-1] < 0.05
    assert values == sorted(values, reverse=True)


def test_warm_up_rises_linearly_and_ends():
    assert rates(ScheduleSection(kind="constant", warmup=4), 6) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])


def test_an_unknown_schedule_is_named():
    with pytest.raises(LtatError, match="zigzag"):
        learning_rate(ScheduleSection(kind="zigzag"), 0.1, 1, 2)


def test_weight_decay_spares_norms_and_biases_only_when_asked():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert len(build_optimizer(model, OptimSection()).param_groups) == 1
    decayed, spared = build_optimizer(model, OptimSection(wd_skip_bn=True)).param_groups
    assert [p.ndim for p in decayed["params"]] == [4] and decayed["weight_decay"] == 5e-4
    assert [p.ndim for p in spared["params"]] == [1, 1, 1] and spared["weight_decay"] == 0


def test_the_rate_reaches_every_group():
    optimizer = torch.optim.SGD(
        [{"params": [nn.Parameter(torch.ones(1))]}, {"params": [nn.Parameter(torch.ones(1))]}], lr=1
    )
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_the_steps_are_those_of_torch():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    other = copy.deepcopy(network)
    ours = build_optimizer(network, OptimSection(lr=0.1, momentum=0.9, wd=0.1, nesterov=True, wd_skip_bn=False))
    named = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True, "fused": True}
    theirs = torch.optim.SGD(other.parameters(), **named)
    for _ in range(3):
        x = torch.randn(5, 4)
        for model, optimizer in ((network, ours), (other, theirs)):
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()
    assert all(torch.equal(*pair) for pair in zip(network.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("epochs", [2, 3, 10, 30, 100])
@pytest.mark.parametrize(("rise", "div", "final_div"), [(0.3, 25, 1e4), (0.25, 10, 100), (0.05, 4, 1), (0.9, 1, 1e4)])
def test_one_cycle_is_that_of_torch_with_a_step_an_epoch(epochs: int, rise: float, div: float, final_div: float):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, epochs, pct_start=rise, div_factor=div, final_div_factor=final_div, cycle_momentum=False
    )
    expected = []
    for _ in range(epochs):
        expected += reference.get_last_lr()
        optimizer.step()
        if len(expected) < epochs:
            reference.step()
    schedule = ScheduleSection(kind="onecycle", rise=rise, div=div, final_div=final_div)
    assert rates(schedule, epochs, 0.2) == pytest.approx(expected, rel=1e-9)


def test_one_cycle_where_its_peak_is_the_first_epoch_begins_there():
    assert rates(ScheduleSection(kind="onecycle", rise=0.1), 10)[0] == 1
    assert rates(ScheduleSection(kind="onecycle"), 1) == [1]


@pytest.mark.parametrize("setting", ["rise=1", "rise=0", "div=0.5", "final_div=0"])
def test_a_cycle_that_cannot_be_is_refused(setting: str):
    with pytest.raises(LtatError, match=f"schedule.{setting}"):
        load_config(lambda m: find_method(m).Config, assignments=[f"schedule.{setting}"])
