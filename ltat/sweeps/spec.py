"""The file that describes a sweep: a grid of methods, seeds and settings (docs/sweeps.md)."""

import itertools
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ltat.arguments import shown
from ltat.config import Asked, RunConfig, from_toml, load_config
from ltat.config.recipes import find_recipe
from ltat.config.renamed import has_setting, todays_name
from ltat.config.sections import Tree
from ltat.errors import LtatError
from ltat.methods import absolute_method, find_method, is_user_method, method_label
from ltat.sweeps.plans import RunPlan, plan_run, require_distinct

GROUP = ("recipe", "settings", "grid")
"""What describes a group of runs: the file itself is one, and each `[[also]]` another."""
SEEDS = "seed."
TRAIN_SEED = "seed.train"
DEFAULT_METHOD = "self-distill"
WORD = 40  # characters of a value in the name of a run


@dataclass(frozen=True)
class Sweep:
    """A sweep as its file describes it.

    Attributes:
        out: its folder.
        plans: the runs, in the order of the file; they do not share teachers yet.
        remarks: lines on settings that some methods run without.
    """

    out: Path
    plans: list[RunPlan]
    remarks: list[str]


@dataclass(frozen=True)
class Group:
    """Runs of one grid: every combination of its values, on top of ``settings``, on top of the recipe.

    Settings and grid are by dotted name.
    """

    recipe: str | None
    settings: Tree
    grid: dict[str, list[Any]]

    def points(self) -> Iterator[Tree]:
        """The values of each run."""
        for values in itertools.product(*self.grid.values()):
            yield dict(zip(self.grid, values, strict=True))


def load_sweep(file: Path, out: Path | None = None, trusted: Collection[str] = ()) -> Sweep:
    """Read the file of a sweep and check the settings of every run.

    Args:
        file: a TOML file.
        out: the folder of the sweep, instead of the file's.
        trusted: the methods of Python files, ``file.py:MyMethod``, that may be run.

    Raises:
        LtatError: the file is not as docs/sweeps.md describes it, a run has wrong settings, or two have one name.
    """
    tree = from_toml(file)
    groups = groups_of(tree, str(file))
    folder = out or _text(tree, "out", str(file))
    if folder is None:
        raise LtatError(f'{file} names no folder for the runs; write for example out = "runs/sweep", or give --out')
    runs = [
        request(group, point, {absolute_method(name) for name in trusted})
        for group in groups
        for point in group.points()
    ]
    known = {name for run in runs for name in (*run.recipe, *run.settings) if run.has(name)}
    plans, remarks = [], []
    for run in runs:
        missing = {name for name in (*run.recipe, *run.settings) if name in known and not run.has(name)}
        asked = run.without(missing)
        name, row = names(asked.config.method, run.point)
        plans.append(plan_run(name, Path(folder) / name, asked, row))
        remarks += [
            f"{each} is left out for {method_label(asked.config.method)}, which lacks it" for each in sorted(missing)
        ]
    require_distinct(plans)
    return Sweep(Path(folder), plans, list(dict.fromkeys(remarks)))


def groups_of(tree: Tree, file: str) -> list[Group]:
    """The groups of runs that a file's ``tree`` describes.

    Raises:
        LtatError: an unknown entry, one of a wrong type, or no group.
    """
    _refuse_unknown(tree, (*GROUP, "out", "also"), file)
    others = tree.get("also", [])
    if not isinstance(others, list) or not all(isinstance(each, dict) for each in others):
        raise LtatError(f"also in {file} is {shown(others)}; begin each further group with [[also]]")
    shared = _group({name: tree[name] for name in ("recipe", "settings") if name in tree}, file)
    groups = [_group(tree, file)] if "grid" in tree else []
    for own in others:
        _refuse_unknown(own, GROUP, f"[[also]] of {file}")
        group = _group(own, f"[[also]] of {file}")
        groups.append(Group(group.recipe or shared.recipe, {**shared.settings, **group.settings}, group.grid))
    if not groups:
        raise LtatError(f'{file} describes no run; give it a [grid], such as method = ["at-bsl", "pgd-at"]')
    return groups


def _group(tree: Tree, file: str) -> Group:
    grid = _leaves(tree.get("grid", {}), "grid", file)
    for name, values in grid.items():
        if not isinstance(values, list) or not values:
            raise LtatError(f"the grid of {file} has {name} = {shown(values)}; give a list of at least one value")
    return Group(_text(tree, "recipe", file), _leaves(tree.get("settings", {}), "settings", file), grid)


def _leaves(tree: object, what: str, file: str, prefix: str = "") -> Tree:
    """The settings of a table by dotted name."""
    if not isinstance(tree, dict):
        raise LtatError(f"{what} in {file} is {shown(tree)}; write it as a table [{what}]")
    leaves: Tree = {}
    for name, value in tree.items():
        dotted = f"{prefix}{name}"
        leaves |= _leaves(value, what, file, f"{dotted}.") if isinstance(value, dict) else {dotted: value}
    return leaves


def _text(tree: Tree, name: str, file: str) -> str | None:
    value = tree.get(name)
    if value is not None and not isinstance(value, str):
        raise LtatError(f"{name} in {file} is {shown(value)}; write it as text in quotes")
    return value


def _refuse_unknown(tree: Tree, known: Collection[str], where: str) -> None:
    unknown = [name for name in tree if name not in known]
    if unknown:
        raise LtatError(f"{where} has an entry {unknown[0]!r}; it may have {', '.join(known)}")


@dataclass(frozen=True)
class Request:
    """What is asked for in one run: a recipe's tree, settings and the values of the grid, the last two by dotted name.

    ``kind`` is the class of the method's settings.
    """

    recipe: Tree
    settings: Tree
    point: Tree
    kind: type[RunConfig]

    def has(self, name: str) -> bool:
        """Whether the method has a setting or a section of that name."""
        return has_setting(self.kind, todays_name(name, self.kind))

    def without(self, missing: Collection[str]) -> Asked[RunConfig]:
        """The settings of the run without some of the recipe and of the settings.

        What the grid names is never left out, because two of its runs would be one.

        Raises:
            LtatError: wrong settings.
        """
        return load_config(
            lambda name: self.kind,
            recipe={name: value for name, value in self.recipe.items() if name not in missing},
            settings={**{name: own for name, own in self.settings.items() if name not in missing}, **self.point},
        )


def request(group: Group, point: Tree, trusted: Collection[str]) -> Request:
    """What is asked for in a run of the group.

    Raises:
        LtatError: an unknown recipe or method, or a method in a Python file that is not trusted.
    """
    recipe = find_recipe(group.recipe) if group.recipe is not None else {}
    method = {**recipe, **group.settings, **point}.get("method", DEFAULT_METHOD)
    if not isinstance(method, str):
        raise LtatError(f"method is {shown(method)} in the sweep; write its name in quotes")
    method = absolute_method(method)
    if is_user_method(method) and method not in trusted:
        raise LtatError(
            f"the sweep names the Python file {method}, which would be run; if you trust it: --method {method}"
        )
    return Request(recipe, group.settings, {**point, "method": method}, find_method(method).Config)


def names(method: str, point: Tree) -> tuple[str, str]:
    """The name of a run, which is also that of its folder, and the name of its row: the same without the seeds."""
    others = {name: value for name, value in point.items() if name != "method" and not name.startswith(SEEDS)}
    seeds = {name: value for name, value in point.items() if name.startswith(SEEDS)}
    row = " ".join([method_label(method), *(f"{name}={in_text(value)}" for name, value in others.items())])
    words = [method_label(method), *(f"{name}={word(value)}" for name, value in others.items())]
    words += [f"s{value}" if name == TRAIN_SEED else f"{name}={word(value)}" for name, value in seeds.items()]
    return "-".join(words), row


def in_text(value: object) -> str:
    """A value of the grid as text."""
    if isinstance(value, dict):
        return ",".join(f"{name}={in_text(own)}" for name, own in value.items())
    if isinstance(value, list):
        return ",".join(map(in_text, value))
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def word(value: object) -> str:
    """A value of the grid as part of the name of a folder; a long or unusual one as a checksum."""
    text = in_text(value).replace("/", ":")
    plain = len(text) <= WORD and re.fullmatch(r"[\w.+=,:-]+", text, re.ASCII)
    return text if plain else sha256(text.encode()).hexdigest()[:8]
