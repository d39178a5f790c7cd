"""Attacks: the threat model, PGD in every published variant, and the authors' AutoAttack."""

from ltat.attacks.attack import pgd
from ltat.attacks.modes import MODES, frozen_batch_norm_statistics
from ltat.attacks.objectives import OBJECTIVES, Objective, cross_entropy
from ltat.attacks.starts import STARTS, random_start
from ltat.attacks.threat import ThreatModel

__all__ = [
    "MODES",
    "OBJECTIVES",
    "STARTS",
    "Objective",
    "ThreatModel",
    "cross_entropy",
    "frozen_batch_norm_statistics",
    "pgd",
    "random_start",
]
