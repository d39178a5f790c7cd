"""The training methods: one file each, found by name in :data:`METHODS`, or in a user's file."""

from ltat.errors import LtatError
from ltat.methods.adaad import Adaad
from ltat.methods.ard import Ard
from ltat.methods.at_bsl import AtBsl
from ltat.methods.base import Method
from ltat.methods.dafa import Dafa
from ltat.methods.distillation_igdm import AdaadIgdm, ArdIgdm, RsladIgdm
from ltat.methods.faal import Faal
from ltat.methods.mart import Mart
from ltat.methods.natural import Natural
from ltat.methods.pgd_at import PgdAt
from ltat.methods.reat import Reat
from ltat.methods.robal import Robal
from ltat.methods.rslad import Rslad
from ltat.methods.self_distill import SelfDistill
from ltat.methods.step import LossTerms, Step
from ltat.methods.taet import Taet
from ltat.methods.trades import Trades
from ltat.methods.user import absolute_method, is_user_method, load_user_method, method_label

METHODS: dict[str, type[Method]] = {
    "natural": Natural,
    "pgd-at": PgdAt,
    "trades": Trades,
    "mart": Mart,
    "at-bsl": AtBsl,
    "robal": Robal,
    "reat": Reat,
    "taet": Taet,
    "faal": Faal,
    "dafa": Dafa,
    "self-distill": SelfDistill,
    "ard": Ard,
    "rslad": Rslad,
    "adaad": Adaad,
    "ard+igdm": ArdIgdm,
    "rslad+igdm": RsladIgdm,
    "adaad+igdm": AdaadIgdm,
}


def find_method(name: str) -> type[Method]:
    """The method called ``name``, or the user's method that ``path/to/file.py:MyMethod`` names.

    Raises:
        LtatError: no method has that name.
    """
    if is_user_method(name):
        return load_user_method(name)
    if name not in METHODS:
        raise LtatError(f"there is no method {name!r}; choose one of {', '.join(METHODS)}, or give file.py:MyMethod")
    return METHODS[name]


__all__ = [
    "METHODS",
    "Adaad",
    "AdaadIgdm",
    "Ard",
    "ArdIgdm",
    "AtBsl",
    "Dafa",
    "Faal",
    "LossTerms",
    "Mart",
    "Method",
    "Natural",
    "PgdAt",
    "Reat",
    "Robal",
    "Rslad",
    "RsladIgdm",
    "SelfDistill",
    "Step",
    "Taet",
    "Trades",
    "absolute_method",
    "find_method",
    "is_user_method",
    "method_label",
]
