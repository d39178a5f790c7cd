"""The tables of IGDM (Lee, Cho, Kim; ICLR 2025; arXiv 2312.03286): three distillations, each with the term and without.

The base is the method with the term's weight at zero, so that nothing else differs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ltat.reproduce.published import IGDM, Published, as_last, published_checkpoints
from ltat.reproduce.targets import BASELINE, MAIN, OTHER, Cell, Column, Target

SOURCE = "Lee, Cho, Kim, ICLR 2025 (arXiv 2312.03286)"
COLUMNS = (
    Column("clean", "clean", published="clean"),
    Column("PGD-20", "pgd20", published="pgd20"),
    Column("AutoAttack", "autoattack", published="aa"),
)
BASES = {"ard": "ARD", "rslad": "RSLAD", "adaad": "AdaAD"}
BEST = "adaad"
DATA = {"cifar100": ("c100", "CIFAR-100"), "cifar10": ("c10", "CIFAR-10")}
NETWORKS = {"resnet18": ("rn18", "ResNet-18"), "mobilenetv2": ("mnv2", "MobileNetV2")}
TEACHERS = {
    "cifar100": "models/cifar100/Linf/Wang2023Better_WRN-28-10.pt",
    "cifar10": "models/cifar10/Linf/Gowal2021Improving_28_10_ddpm_100m.pt",
}
"""Where RobustBench's own loader puts its files, from the folder in which the command runs."""
UNNAMED_BASE = "the abstract does not name the base"
NOTE = """\
The teacher is {teacher}, as RobustBench's loader stores it. The abstract names neither its teacher nor its base: AdaAD
is taken for both of its figures."""


def targets() -> Iterator[Target]:
    """A table for each data set and network."""
    for data, (short, data_title) in DATA.items():
        for network, (name, title) in NETWORKS.items():
            cells = [cell(base, term, data, network) for base in BASES for term in (False, True)]
            note = NOTE.format(teacher=TEACHERS[data])
            shown = f"IGDM on three bases: {data_title}, {title}"
            yield Target(f"igdm-{short}-{name}", shown, SOURCE, cells, COLUMNS, ("last",), note=note)


def cell(base: str, term: bool, data: str, network: str) -> Cell:
    """A distillation with the term, or without it."""
    settings: dict[str, Any] = {
        "data.name": data,
        "model.name": network,
        "teacher.path": TEACHERS[data],
        "teacher.model": "wrn28-10-silu",
        "teacher.normalize": data,
    }
    rank = OTHER if base != BEST else MAIN if term else BASELINE
    label = BASES[base] + (" + IGDM" if term else "")
    own = settings if term else {**settings, "igdm.alpha": 0.0}
    published = abstract(term, data, network) if base == BEST else {}
    return Cell(label, f"{base}+igdm/faithful", own, rank=rank, published=published)


def abstract(term: bool, data: str, network: str) -> Mapping[str, Published]:
    """The abstract's best figure with the term or without it, as that of the last checkpoint."""
    name = "best-with-igdm" if term else "best-without-igdm"
    rows = published_checkpoints(IGDM, "abstract", name, dataset=data, architecture=network)
    return as_last({key: replace(row, doubt=row.doubt or UNNAMED_BASE) for key, row in rows.items()})
