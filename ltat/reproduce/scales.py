"""The scale of a reproduction: the published settings, or a short run of a small network on a CPU."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ltat.config import RunConfig
from ltat.sweeps.lengths import scaled

Adapt = Callable[[RunConfig], Mapping[str, Any]]
SHARE = 1 / 5
TESTED = 5000


@dataclass(frozen=True)
class Scale:
    """How large the runs of a reproduction are.

    Attributes:
        name: as ``--scale`` takes it.
        comparable: whether its figures may be compared with the published ones, and not only their order.
        remark: what it is, for the page.
        adapt: from the settings of a row to settings on top, by dotted name.
    """

    name: str
    comparable: bool
    remark: str
    adapt: Adapt


def paper(row: RunConfig) -> Mapping[str, Any]:
    """Nothing: the published settings."""
    del row
    return {}


def small(row: RunConfig) -> Mapping[str, Any]:
    """A fifth of the epochs, so that rows of equal compute stay so, on a small network."""
    epochs = max(1, round(SHARE * row.train.epochs))
    return {
        **scaled(row, epochs),
        "train.epochs": epochs,
        "model.name": "resnet8-s2",
        "attack.steps": min(5, row.attack.steps),
        "select.set": "val",
        "select.from": max(1, round(SHARE * row.select.from_epoch)),
        "eval.n_examples": TESTED,
        "eval.attacks": [name for name in row.eval.attacks if name != "autoattack"],
    }


SCALES = {
    "paper": Scale("paper", True, "the settings of the recipes", paper),
    "small": Scale(
        "small",
        False,
        "ResNet-8, a fifth of all epochs, at most 5 steps of attack, the best checkpoint selected on held-out images, "
        "at most 5,000 test images, no AutoAttack: only the order of the methods can be compared with the paper's",
        small,
    ),
}
