"""`ltat compare`: every method under one protocol, as a sweep of methods and seeds, with the spread over seeds."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltat.cli.launching import carry_out, chosen_launcher, launcher_options, require_success, show_checkpoints
from ltat.cli.options import comma_separated
from ltat.cli.protocol import Protocol, protocol_name, teacher_lengths
from ltat.errors import LtatError
from ltat.files import check_outputs

if TYPE_CHECKING:
    from ltat.config import Asked, RunConfig
    from ltat.sweeps import RunPlan


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
@launcher_options
def command(out: Path, seeds: int, json_file: Path | None, **options: Any) -> None:
    """Train every method with every seed under one protocol, and show mean and standard deviation.

    There is a table for each checkpoint: best and last, and with an average also those of the raw network. The runs are
    carried out as by `ltat sweep`: several at a time, a teacher that several students share trained once, finished runs
    skipped, and interrupted ones continued by the same command.
    """
    from ltat.sweeps import share_teachers

    check_outputs({"--json": json_file, "--out": out / "METHOD"})
    launcher = chosen_launcher(options)
    protocol = protocol_of(**options)
    configs = {name: protocol.configs(name, seeds) for name in protocol.methods}
    for line in remarks(protocol, configs):
        click.echo(line, err=True)
    data = "; ".join({described(asked.config): None for own in configs.values() for asked in own})
    plans = share_teachers([plan for name, own in configs.items() for plan in plans_of(name, own, out)], out)
    states = carry_out(plans, launcher, out)
    show_checkpoints(plans, states, json_file)
    click.echo(f"{protocol.recipe} on {data}; {seeds} seed(s), mean ± standard deviation")
    for line in explanation(configs):
        click.echo(line)
    click.echo(f"run folders: {out}")
    require_success(states)


def plans_of(method: str, configs: "list[Asked[RunConfig]]", out: Path) -> "list[RunPlan]":
    """The runs of a method, ``out/METHOD/sSEED``."""
    from ltat.methods import method_label
    from ltat.sweeps import plan_run

    label = method_label(method)
    seeds = [(asked, asked.config.seed.train) for asked in configs]
    return [plan_run(f"{label}-s{seed}", out / label / f"s{seed}", asked, label) for asked, seed in seeds]


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


def explanation(configs: "dict[str, list[Asked[RunConfig]]]") -> list[str]:
    """Lines on what the names of the checkpoints mean, by the settings of the runs."""
    from ltat.config.resolving import for_dataset
    from ltat.training.averaging import raw_is_reported

    runs = [for_dataset(asked).config for own in configs.values() for asked in own[:1]]
    images = {"val": "held-out images", "test": "the test set"}
    chosen = {f"{run.select.metric} on {images[run.select.set]}" for run in runs if run.select.set in images}
    lines = [f"best: the epoch that is best by {' or '.join(sorted(chosen))}"] if chosen else []
    if any(map(raw_is_reported, runs)):
        lines.append("best, last: the average of the weights; raw-best, raw-last: the network without it")
    return lines


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
