"""Former names of settings: they work for one version, with a warning that has the new name."""

import warnings
from collections.abc import Iterable

from ltat.config.sections import RunConfig, Section, Tree
from ltat.errors import LtatError

NAMES = {
    "lr": "schedule",
    "teacher.lr": "teacher.schedule",
    "attack.step": "attack.step_size",
    "radius.alpha": "radius.share",
    "radius.ramp": "radius.ramp_share",
    "kd.alpha": "kd.share",  # of ARD, RSLAD and AdaAD; the main method's kd.alpha is a weight, and stays
}
"""New names of settings and sections by their former ones; an entry applies if only the new name exists."""

VALUES = {("schedule.kind", "step"): "multistep", ("teacher.schedule.kind", "step"): "multistep"}


def with_new_names(tree: Tree, kind: type[Section]) -> Tree:
    """A tree of settings of ``kind`` with former names replaced by new ones, with a warning for each.

    Raises:
        LtatError: the tree has a setting under both names.
    """
    for old, new in NAMES.items():
        if not has_setting(kind, old) and has_setting(kind, new):
            tree = _renamed(tree, old.split("."), new)
    for (name, old), new in VALUES.items():
        *sections, leaf = name.split(".")
        section = _section(tree, sections)
        if section is not None and section.get(leaf) == old:
            tree = _put(tree, sections, {**section, leaf: new})
            _warn(f"{name}={old}", f"{name}={new}")
    return tree


def todays_name(dotted: str, kind: type[Section]) -> str:
    """The dotted name of a setting of ``kind``, with a former name of it or of its section replaced by the new one."""
    for old, new in NAMES.items():
        if f"{dotted}.".startswith(f"{old}.") and not has_setting(kind, old) and has_setting(kind, new):
            return new + dotted[len(old) :]
    return dotted


def former_sections(kind: type[RunConfig]) -> dict[str, str]:
    """The sections that ``kind`` declares under a former name, which is never read, with the new name of each."""
    found: dict[str, str] = {}
    for old, new in NAMES.items():
        own, shared = kind.section(old), RunConfig.section(new)
        if own is not None and shared is not None and issubclass(own, shared):
            found[old] = new
    return found


def has_setting(kind: type[Section], dotted: str) -> bool:
    """Whether ``kind`` has a setting or section of that dotted name."""
    *sections, leaf = dotted.split(".")
    found: type[Section] | None = kind
    for name in sections:
        found = None if found is None else found.section(name)
    return found is not None and leaf in found.model_fields


def _renamed(tree: Tree, old: list[str], new: str) -> Tree:
    *sections, leaf = old
    section = _section(tree, sections)
    if section is None or leaf not in section:
        return tree
    rest = {name: value for name, value in section.items() if name != leaf}
    target = new.rpartition(".")[2]
    both = target in rest
    if both and (not _are_sections(rest[target], section[leaf]) or rest[target].keys() & section[leaf].keys()):
        raise LtatError(f"{new} is given twice, also under its former name {'.'.join(old)}; leave that out")
    _warn(".".join(old), new)
    value = {**section[leaf], **rest[target]} if both else section[leaf]
    return _put(tree, sections, {**rest, target: value})


def _are_sections(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)


def _section(tree: Tree, names: Iterable[str]) -> Tree | None:
    found: object = tree
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else None


def _put(tree: Tree, names: list[str], section: Tree) -> Tree:
    if not names:
        return section
    first, *rest = names
    return {**tree, first: _put(tree[first], rest, section)}


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the next version removes the former name", FutureWarning, stacklevel=2)
