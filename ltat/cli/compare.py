"""`ltat compare`: every method under one protocol, with the spread over seeds."""

import json
import math
import shlex
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltat.cli.options import comma_separated
from ltat.cli.protocol import Protocol, protocol_name, teacher_lengths
from ltat.errors import LtatError
from ltat.files import atomic_write_text, check_outputs

if TYPE_CHECKING:
    from rich.table import Table

    from ltat.config import Asked, RunConfig

GROUPS = ("overall", "balanced", "many", "medium", "few", "tail")
Figures = dict[str, list[float]]
"""Accuracies in percent, one per seed, by ``attack group`` such as ``pgd20 tail``."""


@click.command("compare")
@click.option(
    "--dataset",
    metavar="D",
    help="The data set, under recipe unified/D, or unified/any where there is none; else digits.",
)
@click.option("--recipe", metavar="NAME|FILE", help="The protocol, on its own data set or on that of --dataset.")
@click.option("--data-dir", metavar="DIR", help="Where the data set lies.")
@click.option("--methods", metavar="M,M", help="Names or file.py:MyMethod; all methods where left out.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, metavar="N", help="Runs of each.")
@click.option(
    "--epochs", type=click.IntRange(min=1), metavar="N", help="Of the methods; the teachers' change in proportion."
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/compare"), show_default=True
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the figures here."
)
@click.option(
    "--set", "assignments", multiple=True, metavar="S.KEY=VALUE", help="A setting of every run that has it; repeatable."
)
def command(out: Path, seeds: int, json_file: Path | None, **options: Any) -> None:
    """Train every method with every seed under one protocol, and show mean and standard deviation.

    The figures are those of the last checkpoint on the test set. A comparison that was interrupted goes on with
    the same command; finished runs are only evaluated again.
    """
    from rich.console import Console

    check_outputs({"--json": json_file, "--out": out / "METHOD"})
    protocol = protocol_of(**options)
    configs = {name: protocol.configs(name, seeds) for name in protocol.methods}
    for line in remarks(protocol, configs):
        click.echo(line, err=True)
    figures = run_all(configs, out)
    try:
        if json_file is not None:
            atomic_write_text(json_file, json.dumps(figures, indent=2) + "\n")
    finally:
        for table in render(figures):
            Console().print(table)
    (data,) = {described(asked.config) for own in configs.values() for asked in own}
    click.echo(f"{protocol.recipe} on {data}; last checkpoint, {seeds} seed(s), mean ± standard deviation")
    click.echo(f"run folders: {out}")


def protocol_of(
    dataset: str | None,
    recipe: str | None,
    data_dir: str | None,
    methods: str | None,
    epochs: int | None,
    assignments: tuple[str, ...],
) -> Protocol:
    """The protocol that the options describe.

    Raises:
        LtatError: an empty or unknown name, or two methods that would share a row.
    """
    settings = {"data.name": dataset, "data.dir": data_dir, "train.epochs": epochs}
    return Protocol(protocol_name(recipe, dataset), chosen_methods(methods), settings, assignments)


def remarks(protocol: Protocol, configs: "dict[str, list[Asked[RunConfig]]]") -> list[str]:
    """Lines on what the runs do not have in common, and on what ``--epochs`` changes beside the methods' epochs."""
    lengths = teacher_lengths(own[0].config for own in configs.values())
    changed = protocol.settings["train.epochs"] is not None and lengths
    epochs = f"--epochs: the teachers train for {', '.join(map(str, lengths))} epoch(s), in proportion"
    return protocol.left_out() + ([epochs] if changed else [])


def described(config: "RunConfig") -> str:
    """The data set of a run in words: name, imbalance ratio, test set."""
    from ltat.config import Asked
    from ltat.config.resolving import for_dataset

    data = for_dataset(Asked(config)).config.data
    ratio = data.imbalance_ratio if data.imbalance_ratio == "natural" else f"{data.imbalance_ratio:g}"
    return f"{data.name}, imbalance ratio {ratio}, {tested_on(data.test_imbalance_ratio)}"


def tested_on(ratio: float | str) -> str:
    """The test set of a run with this ``data.test_imbalance_ratio``."""
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


def render(figures: dict[str, Figures]) -> "list[Table]":
    """A table per attack: a row per method, a column per group.

    A group without images has no column; nor has the balanced accuracy where it is the overall one, as on a balanced
    test set.
    """
    attacks = dict.fromkeys(column.rpartition(" ")[0] for own in figures.values() for column in own)
    return [attack_table(attack, figures) for attack in attacks]


def attack_table(attack: str, figures: dict[str, Figures]) -> "Table":
    """The table of one attack."""
    from rich import box
    from rich.table import Table

    table = Table(title=f"{attack}: accuracy in percent", box=box.HORIZONTALS, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", overflow="fold")
    groups = [group for group in GROUPS if shown(attack, group, figures)]
    for group in groups:
        table.add_column(group, justify="right", no_wrap=True)
    for method, own in figures.items():
        table.add_row(method, *(cell(own.get(f"{attack} {group}", [])) for group in groups))
    return table


def shown(attack: str, group: str, figures: dict[str, Figures]) -> bool:
    """Whether the group says more than the columns beside it."""
    columns = [(own.get(f"{attack} {group}"), own.get(f"{attack} overall")) for own in figures.values()]
    return any(own and (group != "balanced" or not equal(own, overall)) for own, overall in columns)


def equal(values: list[float], others: list[float] | None) -> bool:
    """Whether two lists of accuracies differ by rounding alone."""
    return others is not None and all(math.isclose(a, b) for a, b in zip(values, others, strict=True))


def cell(values: list[float]) -> str:
    """Mean and, from two seeds on, the sample standard deviation."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"
