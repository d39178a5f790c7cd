"""`ltat compare`: every method under one protocol, with the spread over seeds."""

import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltat.cli.options import comma_separated
from ltat.config import Asked, load_config
from ltat.config.loading import set_by_path
from ltat.config.recipes import find_recipe, list_recipes
from ltat.errors import LtatError
from ltat.files import atomic_write_text, check_outputs

if TYPE_CHECKING:
    from rich.table import Table

    from ltat.config import RunConfig

GROUPS = ("overall", "tail")
DECIDED = {"method": "--methods names the methods", "seed.train": "--seeds numbers the runs"}
Figures = dict[str, list[float]]
"""Accuracies in percent, one per seed, by ``attack group`` such as ``pgd20 tail``."""


@click.command("compare")
@click.option("--dataset", metavar="D", help="The data set, under recipe unified/D where none is named; else digits.")
@click.option("--recipe", metavar="NAME|FILE", help="The protocol, on its own data set or on that of --dataset.")
@click.option("--data-dir", metavar="DIR", help="Where the data set lies.")
@click.option("--methods", metavar="M,M", help="Names or file.py:MyMethod; all methods where left out.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, metavar="N", help="Runs of each.")
@click.option("--epochs", type=click.IntRange(min=1), metavar="N")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/compare"), show_default=True
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the figures here."
)
@click.option("--set", "assignments", multiple=True, metavar="S.KEY=VALUE", help="A setting of every run; repeatable.")
def command(out: Path, seeds: int, json_file: Path | None, **options: Any) -> None:
    """Train every method with every seed under one protocol, and show mean and standard deviation.

    The figures are those of the last checkpoint on the test set. A comparison that was interrupted goes on with
    the same command; finished runs are only evaluated again.
    """
    from rich.console import Console

    check_outputs({"--json": json_file, "--out": out / "METHOD"})
    configs = {name: seed_configs(name, seeds, options) for name in chosen_methods(options["methods"])}
    figures = run_all(configs, out)
    try:
        if json_file is not None:
            atomic_write_text(json_file, json.dumps(figures, indent=2) + "\n")
    finally:
        Console().print(render(figures, seeds))
    tested = tested_on({asked.config.data.test_imbalance_ratio for own in configs.values() for asked in own})
    click.echo(f"last checkpoint, {tested}, {seeds} seed(s), mean ± standard deviation; run folders: {out}")


def tested_on(ratios: set[float | str]) -> str:
    """The test set of runs with these ``data.test_imbalance_ratio``, one for all."""
    (ratio,) = ratios
    return "whole test set" if ratio == "natural" else f"long-tailed test set of imbalance ratio {ratio:g}"


def chosen_methods(names: str | None) -> list[str]:
    """The methods to compare, each once.

    Raises:
        LtatError: an empty name, or two methods of one's own that would share a row and a folder.
    """
    from ltat.methods import METHODS, absolute_method, method_label

    methods: dict[str, str] = {}
    for method in map(absolute_method, comma_separated(names) or METHODS):
        other = methods.setdefault(method_label(method), method)
        if other != method:
            raise LtatError(f"{other} and {method} have one name in the comparison; rename one of the classes")
    return list(methods.values())


def seed_configs(method: str, seeds: int, options: dict[str, Any]) -> "list[Asked[RunConfig]]":
    """The settings of a method's runs, with training seeds 0, 1, …; the first is tried.

    Raises:
        LtatError: there is no protocol for the data set, or the settings do not suit the method.
    """
    from ltat.methods import find_method
    from ltat.training import prepare

    recipe = protocol(method, options["recipe"], options["dataset"])
    settings = {
        "method": method,
        "data.name": options["dataset"],
        "data.dir": options["data_dir"],
        "train.epochs": options["epochs"],
    }
    configs = [
        load_config(
            lambda name: find_method(name).Config,
            recipe=recipe,
            settings=settings | {"seed.train": seed},
            assignments=options["assignments"],
            decided=DECIDED,
        )
        for seed in range(seeds)
    ]
    prepare(configs[0])
    return configs


def protocol(method: str, recipe: str | None, dataset: str | None) -> dict[str, Any]:
    """The recipe that is named, else unified/``dataset``, with a self-teacher where a method needs one.

    Raises:
        LtatError: there is no such recipe.
    """
    from ltat.methods import find_method
    from ltat.methods.teachers import TaughtConfig

    name = recipe or f"unified/{dataset or 'digits'}"
    if recipe is None and name not in list_recipes():
        raise LtatError(f"there is no recipe {name} for dataset {dataset!r}; name a protocol with --recipe")
    tree = find_recipe(name)
    if issubclass(find_method(method).Config, TaughtConfig) and "path" not in tree.get("teacher", {}):
        set_by_path(tree, "teacher.train", "balanced")  # no other teacher is there for all
    return tree


def run_all(configs: "dict[str, list[Asked[RunConfig]]]", out: Path) -> dict[str, Figures]:
    """Train and evaluate every run into ``out/METHOD/sSEED``; the figures by method."""
    from ltat.methods import method_label
    from ltat.training import train

    figures: dict[str, Figures] = {}
    for method, own in configs.items():
        label = method_label(method)
        for asked in own:
            seed = asked.config.seed.train
            click.echo(f"{label}, seed {seed}", err=True)
            try:
                report = train(asked, out / label / f"s{seed}", resume=True)
            except KeyboardInterrupt:
                again = shlex.join(["ltat", *sys.argv[1:]])
                raise click.ClickException(f"interrupted; continue with `{again}`") from None
            collect(figures.setdefault(label, {}), report["last"])
    return figures


def collect(figures: Figures, evaluation: Any) -> None:
    """Add the accuracies of one run."""
    for attack in evaluation.outcomes:
        summary = evaluation.summary(attack)
        for group in GROUPS:
            if summary[group] is not None:
                figures.setdefault(f"{attack} {group}", []).append(summary[group])


def render(figures: dict[str, Figures], seeds: int) -> "Table":
    """A row per method, a column per attack and group."""
    from rich import box
    from rich.table import Table

    table = Table(title="Accuracy in percent", box=box.HORIZONTALS, show_edge=False)
    table.add_column("method", no_wrap=True)
    columns = list(dict.fromkeys(column for own in figures.values() for column in own))
    for column in columns:
        table.add_column(column.removesuffix(" overall"), justify="right", no_wrap=True)
    for method, own in figures.items():
        table.add_row(method, *(cell(own.get(column, [])) for column in columns))
    return table


def cell(values: list[float]) -> str:
    """Mean and, from two seeds on, the sample standard deviation."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"
