"""What `ltat sweep` and `ltat compare` share: where the runs are carried out, their figures, and how they end."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltat.cli.options import Command
from ltat.errors import LtatError
from ltat.files import atomic_write_text

if TYPE_CHECKING:
    from ltat.sweeps import RunPlan, RunState
    from ltat.sweeps.jobs import Launcher


def launcher_options(command: Command) -> Command:
    """--launcher, and what describes its jobs; :func:`chosen_launcher` reads them."""
    options = [
        click.option("--launcher", type=click.Choice(["local", "slurm"]), default="local", show_default=True),
        click.option(
            "--jobs", type=click.IntRange(min=1), metavar="N", help="Runs at a time; else one per GPU, or per core."
        ),
        click.option("--partition", metavar="P", help="slurm: where the jobs run; else the cluster's default."),
        click.option(
            "--time", "minutes", type=click.IntRange(min=1), metavar="MINUTES", help="slurm: limit of a job; 240."
        ),
        click.option("--gpus", type=click.IntRange(0, 1), help="slurm: GPUs of a run; 1."),
        click.option(
            "--cpus", type=click.IntRange(min=1), metavar="N", help="slurm: cores of a run, and its threads; 4."
        ),
        click.option(
            "--sbatch", multiple=True, metavar="KEY=VALUE", help="slurm: another option of sbatch; repeatable."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def chosen_launcher(options: dict[str, Any]) -> "Launcher":
    """The launcher that the options name; they are taken out of ``options``.

    Raises:
        LtatError: an option of the other launcher, or one of `sbatch` that is not of the form KEY=VALUE.
    """
    launcher = LAUNCHERS[options.pop("launcher")]
    return launcher(**{name: options.pop(name) for name in ("jobs", "partition", "minutes", "gpus", "cpus", "sbatch")})


def local(jobs: int | None, **others: Any) -> "Launcher":
    """The launcher of this machine.

    Raises:
        LtatError: an option of the other launcher is given.
    """
    from ltat.sweeps import Local

    given = [name for name, value in others.items() if value not in (None, ())]
    if given:
        name = {"minutes": "time"}.get(given[0], given[0])
        raise LtatError(f"--{name} is for jobs of a cluster; add --launcher slurm, or leave it out")
    return Local(jobs)


def slurm(
    jobs: int | None,
    partition: str | None,
    minutes: int | None,
    gpus: int | None,
    cpus: int | None,
    sbatch: tuple[str, ...],
) -> "Launcher":
    """The launcher of a cluster.

    Raises:
        LtatError: an option of `sbatch` is not of the form KEY=VALUE.
    """
    from ltat.sweeps.slurm import Slurm

    pairs = [text.lstrip("-").partition("=") for text in sbatch]
    for text, (key, equals, _) in zip(sbatch, pairs, strict=True):
        if not key or not equals:
            raise LtatError(f"--sbatch {text!r} is not of the form KEY=VALUE; write for example account=lab")
    usual = Slurm()
    return Slurm(
        jobs=jobs,
        partition=partition,
        minutes=minutes or usual.minutes,
        gpus=usual.gpus if gpus is None else gpus,
        cpus=cpus or usual.cpus,
        sbatch={key: value for key, _, value in pairs},
    )


LAUNCHERS: "dict[str, Callable[..., Launcher]]" = {"local": local, "slurm": slurm}


def carry_out(plans: "list[RunPlan]", launcher: "Launcher", out: Path) -> "dict[str, RunState]":
    """Carry out the runs; an interruption prints the command that continues."""
    from ltat.sweeps import Interrupted, run_sweep

    try:
        return run_sweep(plans, launcher, out)
    except Interrupted as stopped:
        again = shlex.join(["ltat", *sys.argv[1:]])
        raise click.ClickException(f"{stopped}; continue with `{again}`") from None
    except KeyboardInterrupt:
        raise click.ClickException("interrupted before the first run began; nothing was written") from None


def show_results(plans: "list[RunPlan]", states: "dict[str, RunState]", json_file: Path | None) -> None:
    """Print the table of the finished runs' last checkpoints, and write the figures into a file where one is named."""
    from rich.console import Console

    from ltat.sweeps.results import collect, render, to_json

    rows = collect(finished(plans, states))
    try:
        if json_file is not None:
            atomic_write_text(json_file, json.dumps(to_json(rows), indent=2) + "\n")
    finally:
        if rows:
            Console().print(render(rows))


def show_checkpoints(plans: "list[RunPlan]", states: "dict[str, RunState]", json_file: Path | None) -> None:
    """As :func:`show_results`, with a table and an entry of the file for each checkpoint that the runs report."""
    from rich.console import Console

    from ltat.sweeps.results import CHECKPOINTS, collect, render, to_json

    there = finished(plans, states)
    tables = {name: rows for name in CHECKPOINTS if (rows := collect(there, name))}
    try:
        if json_file is not None:
            tree = {name: to_json(rows) for name, rows in tables.items()}
            atomic_write_text(json_file, json.dumps(tree, indent=2) + "\n")
    finally:
        for name, rows in tables.items():
            Console().print(render(rows, f"{name}: accuracy in percent, mean ± standard deviation"))
            click.echo()


def finished(plans: "list[RunPlan]", states: "dict[str, RunState]") -> "list[RunPlan]":
    """The runs that have ended well; one that failed can have the report of an earlier evaluation."""
    from ltat.sweeps import Phase

    return [plan for plan in plans if plan.name in states and states[plan.name].phase is Phase.FINISHED]


def require_success(states: "dict[str, RunState]") -> None:
    """End with exit code 1 where a run failed, with every reason."""
    from ltat.sweeps import Phase

    failed = {name: state.error for name, state in states.items() if state.phase is not Phase.FINISHED}
    if failed:
        reasons = "".join(f"\n  {name}: {error}" for name, error in failed.items())
        raise click.ClickException(f"{len(failed)} of {len(states)} runs failed:{reasons}")
