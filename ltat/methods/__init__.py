"""The training methods: one file each, found by name in :data:`METHODS`."""

from ltat.errors import LtatError
from ltat.methods.at_bsl import AtBsl
from ltat.methods.base import LossTerms, Method, Progress
from ltat.methods.pgd_at import PgdAt
from ltat.methods.reat import Reat
from ltat.methods.robal import Robal
from ltat.methods.self_distill import SelfDistill
from ltat.methods.taet import Taet

METHODS: dict[str, type[Method]] = {
    "pgd-at": PgdAt,
    "at-bsl": AtBsl,
    "self-distill": SelfDistill,
    "reat": Reat,
    "robal": Robal,
    "taet": Taet,
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
    "AtBsl",
    "LossTerms",
    "Method",
    "PgdAt",
    "Progress",
    "Reat",
    "Robal",
    "SelfDistill",
    "Taet",
    "find_method",
]
