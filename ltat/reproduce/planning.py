"""From the rows of a target to runs, the most informative first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ltat.config import Asked, RunConfig, load_config
from ltat.config.recipes import Recipe, find_recipe, list_recipes
from ltat.config.sections import Tree
from ltat.errors import LtatError
from ltat.methods import find_method
from ltat.reproduce.cost import PUBLISHED, Images, images_of
from ltat.reproduce.data import StandIn, data_settings
from ltat.reproduce.scales import Scale
from ltat.reproduce.targets import BASELINE, Cell, Target
from ltat.sweeps import RunPlan, plan_run, share_teachers
from ltat.sweeps.spec import word

OFTEN_SAVED = {"train.checkpoint_minutes": 1.0}
"""How much a run may lose that a budget stops within an epoch; the bits of the run do not depend on it."""


@dataclass(frozen=True)
class Place:
    """Where the runs of a reproduction lie and what they are trained on.

    Attributes:
        out: the folder of all reproductions.
        scale: of the runs.
        folder: of the target's own data set.
        stand_in: a data set in its place.
    """

    out: Path
    scale: Scale
    folder: Path | None = None
    stand_in: StandIn | None = None

    @property
    def runs(self) -> Path:
        """The folder of the runs, which all targets share, and of the pages."""
        on = "" if self.stand_in is None else f"-{self.stand_in.name}"
        return self.out / f"{self.scale.name}{on}"


@dataclass(frozen=True)
class Planned:
    """The runs of a row, one for each seed; ``refused`` says why there is none."""

    cell: Cell
    runs: Sequence[RunPlan] = ()
    refused: str = ""


def plan_target(target: Target, place: Place, seeds: int) -> list[Planned]:
    """The runs of every row of a target, in the order of the table.

    Rows of the same settings are one run. A teacher that several runs share is one run, too.
    """
    planned = [plan_cell(cell, place, seeds) for cell in target.cells]
    distinct = {plan.name: plan for own in planned for plan in own.runs}
    shared = {plan.name: plan for plan in share_teachers(list(distinct.values()), place.runs)}
    return [Planned(own.cell, [shared[plan.name] for plan in own.runs], own.refused) for own in planned]


def row_images(planned: Planned) -> Images | None:
    """The images of a row: by its ratios where its set is a published one, else from its files; None without runs."""
    if not planned.runs:
        return None
    own = row_settings(planned.cell)
    return images_of(own if own.config.data.name in PUBLISHED else planned.runs[0].asked())


def plan_cell(cell: Cell, place: Place, seeds: int) -> Planned:
    """The runs of a row, or why it cannot be run."""
    try:
        data = data_settings(row_settings(cell), place.folder, place.stand_in)
        plans = [plan_seed(cell, place, data, seed) for seed in range(seeds)]
    except LtatError as error:
        return Planned(cell, refused=str(error))
    return Planned(cell, plans)


def plan_seed(cell: Cell, place: Place, data: Any, seed: int) -> RunPlan:
    """The run of a row with one training seed."""
    adapted = place.scale.adapt(row_settings(cell).config)
    asked = row_settings(cell, settings={**adapted, **data, "seed.train": seed, **OFTEN_SAVED})
    row = row_name(cell)
    return plan_run(f"{row}-s{seed}", place.runs / f"{row}-s{seed}", asked, row)


def row_name(cell: Cell) -> str:
    """The name of a row's runs without the seed: the recipe, and what the row adds to it."""
    added = [f"{name}={word(value)}" for name, value in cell.settings.items()]
    return "-".join([cell.recipe.replace("/", "-"), *added])


def row_settings(cell: Cell, settings: dict[str, Any] | None = None) -> Asked[RunConfig]:
    """The settings of a row, with ``settings`` on top.

    Raises:
        LtatError: wrong settings.
    """
    given = {**cell.settings, **(settings or {})}
    return load_config(lambda name: find_method(name).Config, recipe=recipe_tree(cell.recipe), settings=given)


def recipe_tree(name: str) -> Tree:
    """The settings of a recipe of the package."""
    recipes = all_recipes()
    return recipes[name].settings if name in recipes else find_recipe(name)


@cache
def all_recipes() -> Mapping[str, Recipe]:
    """The recipes of the package, read once: a list of all targets asks for a hundred."""
    return list_recipes()


def in_order(planned: Sequence[Planned]) -> list[RunPlan]:
    """Every run once, the most informative first.

    These are the runs of the first seed before those of the second. Within a seed come the main method and its best
    baseline, group after group, and then all other rows.
    """
    groups = list(dict.fromkeys(own.cell.group for own in planned))

    def key(own: Planned, seed: int, position: int) -> tuple[int, ...]:
        rank = own.cell.rank
        first = rank <= BASELINE
        return seed, not first, groups.index(own.cell.group), rank if first else 0, position

    runs = [
        (key(own, seed, position), plan) for position, own in enumerate(planned) for seed, plan in enumerate(own.runs)
    ]
    ordered = [plan for _, plan in sorted(runs, key=lambda each: each[0])]
    return list({plan.name: plan for plan in ordered}.values())
