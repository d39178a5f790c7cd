"""The tables of TAET (Wang et al.; CVPR 2025; arXiv 2503.01924): long-tailed test sets, means over classes."""

from collections.abc import Iterator, Mapping
from typing import Any

from ltat.reproduce.published import TAET, Published, as_last, published_checkpoints
from ltat.reproduce.targets import BASELINE, LAST, MAIN, OTHER, Cell, Column, Target

SOURCE = "Wang et al., CVPR 2025 (arXiv 2503.01924)"
OWN, STRONGEST = "taet", "robal"
BASELINES = {"at-bsl": "AT-BSL", "robal": "RoBal", "reat": "REAT", "pgd-at": "AT", "trades": "TRADES", "mart": "MART"}
COLUMNS = (
    Column("balanced accuracy", "clean", "balanced", "clean"),
    Column("balanced robustness (PGD-20)", "pgd20", "balanced", "pgd20"),
    Column("PGD-100", "pgd100", "balanced"),
    Column("CW", "cw20", "balanced"),
    Column("DeepFool", "deepfool", "balanced"),
    Column("AutoAttack", "autoattack", "balanced"),
)
ATTACKS = ["clean", "pgd20@1/255", "pgd100@1/255", "cw20@1/255", "deepfool", "autoattack"]
NOTE = """\
Images keep their size and networks are ltat's ResNet-18; TAET's are torchvision networks on 224 pixels, so only the
order can be expected to compare. All methods train at 8/255, TAET otherwise as its code does and the others by the
common protocol. CW is the margin loss in the radius, DeepFool's image is brought back into it."""


def targets() -> Iterator[Target]:
    """A table for each long-tailed set."""
    for ratio in (10, 20, 50, 100):
        yield table(f"taet-c10-ir{ratio}", f"CIFAR-10-LT, ratio {ratio}", ratio, "cifar10")
    for ratio in (10, 50, 100):
        yield table(f"taet-c100-ir{ratio}", f"CIFAR-100-LT, ratio {ratio}", ratio, "cifar100")
    yield Target("taet-dermamnist", "TAET: DermaMNIST", SOURCE, list(medical()), COLUMNS, ("last",), note=NOTE)


def table(name: str, title: str, ratio: int, data: str) -> Target:
    """TAET and the baselines at one ratio, of the training set and of the test set."""
    settings = {"data.name": data, "data.imbalance_ratio": ratio, "data.test_imbalance_ratio": ratio}
    cells = [own_row(f"taet/faithful-ir{ratio}", {"data.name": data}, published(OWN, data, ratio))]
    cells += [baseline(f"unified/{data}", method, settings, published(method, data, ratio)) for method in BASELINES]
    return Target(name, f"TAET: {title}", SOURCE, cells, COLUMNS, ("last",), note=NOTE)


def medical() -> Iterator[Cell]:
    """TAET and the baselines on DermaMNIST, whose own sets are long-tailed."""
    yield own_row("taet/faithful-dermamnist", {}, {})
    for method in BASELINES:
        yield baseline("unified/any", method, {"data.name": "medmnist", "data.imbalance_ratio": "natural"}, {})


def own_row(recipe: str, settings: Mapping[str, Any], rows: Mapping[str, Published]) -> Cell:
    """TAET."""
    own = {**settings, "attack.eps": "8/255", "eval.attacks": ATTACKS}
    return Cell("TAET", recipe, own, rank=MAIN, published=rows)


def baseline(recipe: str, method: str, settings: Mapping[str, Any], rows: Mapping[str, Published]) -> Cell:
    """A method that TAET is compared with."""
    rank = BASELINE if method == STRONGEST else OTHER
    own = {**LAST, **settings, "method": method, "eval.attacks": ATTACKS}
    return Cell(BASELINES[method], recipe, own, rank=rank, published=rows)


def published(method: str, data: str, ratio: int) -> dict[str, Published]:
    """The published row of a method, from the bar chart or the list of benchmarks, as that of the last checkpoint."""
    chart, listed = (
        published_checkpoints(TAET, place, method, dataset=data, ratio=float(ratio))
        for place in ("bar chart", "accuracy list")
    )
    return as_last(chart or listed)
