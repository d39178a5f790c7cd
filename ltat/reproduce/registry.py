"""The registry of all that can be reproduced. A paper is a module with a function ``targets``."""

from collections.abc import Callable, Iterable

from ltat.errors import LtatError
from ltat.reproduce import forms, igdm, self_distillation, taet, theory
from ltat.reproduce.targets import Target

PAPERS: tuple[Callable[[], Iterable[Target]], ...] = (
    self_distillation.targets,
    theory.targets,
    igdm.targets,
    taet.targets,
    forms.targets,
)
"""The targets of each paper, in the order of the list."""


def all_targets() -> dict[str, Target]:
    """Every target by name."""
    return {target.name: target for targets in PAPERS for target in targets()}


def find_target(name: str) -> Target:
    """The target called ``name``.

    Raises:
        LtatError: there is none.
    """
    known = all_targets()
    if name not in known:
        raise LtatError(f"there is no table or figure {name!r} to reproduce; choose one of {', '.join(known)}")
    return known[name]
