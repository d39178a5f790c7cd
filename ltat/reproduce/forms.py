"""What the reconstruction leaves open, decided by runs: the form of the distillation term and its weight.

And whether our recipes do what they forecast. Every row is trained by one protocol, and is compared with AT-BSL.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ltat.reproduce.targets import BASELINE, MAIN, OTHER, Cell, Column, Target

PROTOCOL = "unified/cifar10"
ATTACKS = {"eval.attacks": ["clean", "pgd20", "autoattack"]}
BASE = "AT-BSL"
COLUMNS = (
    Column("clean", "clean"),
    Column("PGD-20", "pgd20"),
    Column("AutoAttack", "autoattack"),
    Column("tail, clean", "clean", "tail"),
    Column("tail, PGD-20", "pgd20", "tail"),
)
CHECKPOINTS = ("best", "last", "raw-best", "raw-last")
ALPHAS = (0.3, 3.0, 10.0)
FORMS = ("kl_adv", "kl_adv+igdm")
RECIPES = ("smooth-bsl", "smooth-ltat", "smooth-ltat-plain", "ema-teacher")


def targets() -> Iterator[Target]:
    """One target for CIFAR-10-LT."""
    yield Target(
        "forms",
        "which form and weight of the distillation, and our recipes: CIFAR-10-LT, ratio 50, ResNet-18",
        "Of this project; nothing of it is published",
        [*trained_alike(), *(Cell(f"ours/{name}", f"ours/{name}") for name in RECIPES)],
        COLUMNS,
        CHECKPOINTS,
        seeds=3,
        note=(
            "best and last are of the average of the weights, raw-best and raw-last of the same runs without it. "
            "The distillation's form and weight are not in the text that we have (docs/methods/self-distill.md)."
        ),
        baseline=BASE,
    )


def trained_alike() -> Iterator[Cell]:
    """The rows that differ by the method, the form of the term, or its weight."""
    yield Cell(BASE, PROTOCOL, {"method": "at-bsl", **ATTACKS}, rank=BASELINE)
    yield student("igdm, α 1", {}, MAIN)
    for form in FORMS:
        yield student(f"{form}, α 1", {"kd.form": form})
    yield Cell("RoBal", PROTOCOL, {"method": "robal", **ATTACKS})
    for alpha in ALPHAS:
        yield student(f"igdm, α {alpha:g}", {"kd.alpha": alpha})


def student(label: str, settings: Mapping[str, Any], rank: int = OTHER) -> Cell:
    """A row of the main method."""
    return Cell(f"self-distill: {label}", PROTOCOL, {"method": "self-distill", **settings, **ATTACKS}, rank=rank)
