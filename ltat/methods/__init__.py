"""The training methods: one file each, found by name in :data:`METHODS`."""

from ltat.errors import LtatError
from ltat.methods.adaad import Adaad
from ltat.methods.ard import Ard
from ltat.methods.at_bsl import AtBsl
from ltat.methods.base import LossTerms, Method, Progress
from ltat.methods.igdm import AdaadIgdm, ArdIgdm, RsladIgdm
from ltat.methods.pgd_at import PgdAt
from ltat.methods.rslad import Rslad
from ltat.methods.self_distill import SelfDistill

METHODS: dict[str, type[Method]] = {
    "pgd-at": PgdAt,
    "at-bsl": AtBsl,
    "self-distill": SelfDistill,
    "ard": Ard,
    "rslad": Rslad,
    "adaad": Adaad,
    "ard+igdm": ArdIgdm,
    "rslad+igdm": RsladIgdm,
    "adaad+igdm": AdaadIgdm,
}


def find_method(name: str) -> type[Method]:
    """The method called ``name``.

    Raises:
        LtatError: there is none of that name.
    """
    if name not in METHODS:
        raise LtatError(f"there is no method {name!r}; choose one of {', '.join(METHODS)}")
    return METHODS[name]


__all__ = [
    "METHODS",
    "Adaad",
    "AdaadIgdm",
    "Ard",
    "ArdIgdm",
    "AtBsl",
    "LossTerms",
    "Method",
    "PgdAt",
    "Progress",
    "Rslad",
    "RsladIgdm",
    "SelfDistill",
    "find_method",
]
