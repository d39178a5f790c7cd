"""Former names of settings: they are read for one version, with a line that names the new one."""

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
"""Today's names of settings and sections by their former ones; one holds where only the new name exists."""

VALUES = {("schedule.kind", "step"): "multistep", ("teacher.schedule.kind", "step"): "multistep"}


def with_new_names(tree: Tree, kind: type[Section]) -> Tree:
    """A tree of settings of ``kind`` with today's names in place of former ones; each is named in a warning.

    Raises:
        LtatError: a setting stands there under both names.
    """
    for old, new in NAMES.items():
        if not has_setting(kind, old) and has_setting(kind, new):
            tree = _renamed(tree, old.split("."), new)
    for (name, old), new in VALUES.items():
        *sections, leaf = name.split(".")
        section = _section(tree, sections)
        if section is not None and section.get(leaf) == old:
            tree = _put(tree, sections, {**section, leaf: new})
            _tell(f"{name}={old}", f"{name}={new}")
    return tree


def todays_name(dotted: str, kind: type[Section]) -> str:
    """The dotted name of a setting of ``kind``, with today's name of it or of its section in place of a former one."""
    for old, new in NAMES.items():
        if f"{dotted}.".startswith(f"{old}.") and not has_setting(kind, old) and has_setting(kind, new):
            return new + dotted[len(old) :]
    return dotted


def former_sections(kind: type[RunConfig]) -> dict[str, str]:
    """The sections that ``kind`` declares under a former name, which nothing would read, with today's name of each."""
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
    _tell(".".join(old), new)
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


def _tell(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the former name goes with the next version", FutureWarning, stacklevel=2)
