"""`ltat reproduce`: the tables and figures of the papers, ours beside the published ones."""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltat.cli.launching import chosen_launcher, launcher_options
from ltat.cli.options import Duration
from ltat.errors import LtatError
from ltat.files import atomic_write_text, check_outputs

if TYPE_CHECKING:
    from ltat.reproduce.listing import Work
    from ltat.reproduce.planning import Place, Planned
    from ltat.reproduce.targets import Target
    from ltat.sweeps.jobs import Launcher
    from ltat.sweeps.running import States

LIST = "list"


@click.command("reproduce")
@click.argument("target")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    metavar="N",
    help="Runs of each row; left out, 1, or 5 for table10, 3 for figure4-digits.",
)
@click.option(
    "--scale",
    type=click.Choice(["paper", "small"]),
    default="paper",
    show_default=True,
    help="small: a small network and a fifth of the epochs, for a CPU; only the order of the rows can be compared.",
)
@click.option("--budget", type=Duration(), help="Stop after this time; the same command goes on later.")
@click.option("--data-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where the data set lies.")
@click.option("--dataset", metavar="D", help="The data set in DIR that has the target's images, such as npz.")
@launcher_options
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/reproduce"), show_default=True
)
def command(
    target: str,
    seeds: int | None,
    scale: str,
    budget: float | None,
    data_dir: Path | None,
    dataset: str | None,
    out: Path,
    **options: Any,
) -> None:
    """Run what is missing of TARGET, a table or figure of a paper, and show it beside the published figures.

    `ltat reproduce list` shows every target, what it costs on this machine, and what is done. The most informative runs
    come first; finished ones are skipped and begun ones go on. The page and all its figures are written into the output
    folder, as Markdown and JSON.
    """
    end = None if budget is None else time.monotonic() + budget
    launcher = chosen_launcher(options)
    if budget is not None and not launcher.here:
        raise LtatError(
            f"--budget {budget:g} s is for this machine; on a cluster limit a job by --time, or leave it out"
        )
    place = place_of(out, scale, data_dir, dataset)
    if target == LIST:
        return list_targets(place, seeds)
    reproduce(target, place, seeds, launcher, end)


def place_of(out: Path, scale: str, data_dir: Path | None, dataset: str | None) -> "Place":
    """Where the runs lie, and their data.

    Raises:
        LtatError: the data set that takes the target's place cannot be read.
    """
    from ltat.reproduce.data import read_stand_in
    from ltat.reproduce.planning import Place
    from ltat.reproduce.scales import SCALES

    stand_in = None if dataset is None else read_stand_in(dataset, data_dir)
    return Place(out, SCALES[scale], data_dir, stand_in)


def reproduce(name: str, place: "Place", seeds: int | None, launcher: "Launcher", end: float | None) -> None:
    """Carry out what is missing of a target and write its page.

    Raises:
        LtatError: an unknown target, or data for none of its rows.
    """
    from ltat.reproduce.data import require_data
    from ltat.reproduce.planning import plan_target
    from ltat.reproduce.registry import find_target

    target = find_target(name)
    check_outputs({"--out": place.runs / "RUN"})
    if target.compute is not None:
        for line in target.compute(place.out / target.name):
            click.echo(line)
        return
    planned = plan_target(target, place, seeds or target.seeds)
    if not any(own.runs for own in planned):
        raise LtatError(planned[0].refused)
    require_data(next(plan for own in planned for plan in own.runs))
    states, spent = run_in_order(planned, place, launcher, end)
    write_page(target, planned, states, place)
    if spent:
        click.echo("the budget is spent: the runs under way were stopped, and the same command goes on with them")
    require_success(states)


def run_in_order(
    planned: "list[Planned]", place: "Place", launcher: "Launcher", end: float | None
) -> "tuple[States, bool]":
    """Carry out the runs; an interruption prints the command that continues."""
    from ltat.reproduce.planning import in_order
    from ltat.reproduce.running import carry_out
    from ltat.sweeps import Interrupted

    try:
        return carry_out(in_order(planned), launcher, place.runs, end)
    except Interrupted as stopped:
        again = shlex.join(["ltat", *sys.argv[1:]])
        raise click.ClickException(f"{stopped}; continue with `{again}`") from None


def write_page(target: "Target", planned: "list[Planned]", states: "States", place: "Place") -> None:
    """Write and print the page, and write its figures as JSON."""
    from ltat.reproduce.page import page
    from ltat.reproduce.results import result_tree

    tree = result_tree(target, planned, states, place)
    text, file = page(tree), place.runs / target.name
    atomic_write_text(file.with_suffix(".json"), json.dumps(tree, indent=2, allow_nan=False) + "\n")
    atomic_write_text(file.with_suffix(".md"), text)
    click.echo(text)
    if target.picture is not None:
        target.picture(file.with_suffix(".svg"), tree)
    click.echo(f"page: {file}.md; figures: {file}.json; runs: {place.runs}")


def require_success(states: "States") -> None:
    """End with exit code 1 where runs failed, with every reason; what the budget left over has not failed."""
    from ltat.cli.launching import require_success as require
    from ltat.sweeps import Phase

    left = (Phase.STOPPED, Phase.WAITING)
    require({name: state for name, state in states.items() if state.phase not in left})


def list_targets(place: "Place", seeds: int | None) -> None:
    """Print a line for each target."""
    from ltat.reproduce.listing import list_work
    from ltat.reproduce.registry import all_targets
    from ltat.reproduce.throughput import machine

    targets = all_targets()
    first = max(map(len, targets))
    click.echo(list_line("target", ["runs", "done", "training", "testing", "hours left"], first))
    for work in list_work(list(targets.values()), place, seeds):
        click.echo(list_line(work.target.name, numbers(work), first) + f"  {work.target.title}")
    click.echo("training, and testing (selection and evaluation): million image passes, a forward and a backward each")
    click.echo(f"hours of {machine()}: all cores, or one GPU")


def list_line(name: str, cells: "list[str]", first: int) -> str:
    """A line of the list; ``first`` is the width of its first column."""
    widths = (5, 5, 10, 10, 12)
    return name.ljust(first) + "".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def numbers(work: "Work") -> list[str]:
    """The numbers of a line of the list; a target without runs on these data, and what is not known, has none."""
    if not work.runs:
        return ["–"] * 5
    return [str(work.runs), str(work.done), millions(work.training), millions(work.testing), hours(work.hours)]


def millions(passes: float | None) -> str:
    """Image passes in millions."""
    return "–" if passes is None else f"{passes / 1e6:,.1f}"


def hours(value: float | None) -> str:
    """Hours with a decimal."""
    return "–" if value is None else f"{value:,.1f}"
