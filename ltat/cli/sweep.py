"""`ltat sweep`: a grid of methods, seeds and settings, on this machine or as jobs of a cluster."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltat.errors import LtatError
from ltat.files import atomic_write_text, check_outputs

if TYPE_CHECKING:
    from ltat.sweeps import RunPlan, RunState
    from ltat.sweeps.jobs import Launcher


@click.command("sweep")
@click.argument("spec", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--launcher", type=click.Choice(["local", "slurm"]), default="local", show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), metavar="N", help="Runs at a time; else one per GPU, or per core.")
@click.option("--partition", metavar="P", help="slurm: where the jobs run; else the cluster's default.")
@click.option("--time", "minutes", type=click.IntRange(min=1), metavar="MINUTES", help="slurm: limit of a job; 240.")
@click.option("--gpus", type=click.IntRange(0, 1), help="slurm: GPUs of a run; 1.")
@click.option("--cpus", type=click.IntRange(min=1), metavar="N", help="slurm: cores of a run, and its threads; 4.")
@click.option("--sbatch", multiple=True, metavar="KEY=VALUE", help="slurm: another option of sbatch; repeatable.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="The folder of the sweep, not SPEC's.")
@click.option("--method", "trusted", multiple=True, metavar="FILE.py:M", help="A method in a file that SPEC may run.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the figures here."
)
@click.option("--dry-run", is_flag=True, help="Print the runs and how far each is, and stop.")
def command(
    spec: Path,
    launcher: str,
    out: Path | None,
    trusted: tuple[str, ...],
    json_file: Path | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Carry out the runs that SPEC, a TOML file, describes: every combination of a grid, each in its folder.

    Finished runs are skipped and begun ones go on, so that the same command continues a sweep that was interrupted.
    docs/sweeps.md describes SPEC.
    """
    from ltat.sweeps import share_teachers
    from ltat.sweeps.spec import load_sweep

    chosen = LAUNCHERS[launcher](**options)
    sweep = load_sweep(spec, out, trusted)
    check_outputs({"--json": json_file, "--out": sweep.out / "RUN"})
    plans = share_teachers(sweep.plans, sweep.out)
    for line in sweep.remarks:
        click.echo(line, err=True)
    if dry_run:
        return list_runs(plans, sweep.out)
    states = carry_out(plans, chosen, sweep.out)
    show_results(plans, json_file)
    click.echo(f"run folders: {sweep.out}")
    require_success(states)


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


LAUNCHERS: dict[str, Any] = {"local": local, "slurm": slurm}


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


def list_runs(plans: "list[RunPlan]", out: Path) -> None:
    """Print a line for each run and each teacher, and how far it is."""
    from ltat.sweeps import states_of
    from ltat.sweeps.state import Records
    from ltat.sweeps.table import described

    for name, state in states_of(plans, Records(out)).items():
        reached = f", epoch {state.epoch} of {state.epochs}" if state.epoch else ""
        click.echo(f"{name}: {described(state)}{reached}")


def show_results(plans: "list[RunPlan]", json_file: Path | None) -> None:
    """Print the table of figures, and write them into a file where one is named."""
    from rich.console import Console

    from ltat.sweeps.results import collect, render, to_json

    rows = collect(plans)
    try:
        if json_file is not None:
            atomic_write_text(json_file, json.dumps(to_json(rows), indent=2) + "\n")
    finally:
        if rows:
            Console().print(render(rows))


def require_success(states: "dict[str, RunState]") -> None:
    """End with exit code 1 where a run failed, with every reason."""
    from ltat.sweeps import Phase

    failed = {name: state.error for name, state in states.items() if state.phase is not Phase.FINISHED}
    if failed:
        reasons = "".join(f"\n  {name}: {error}" for name, error in failed.items())
        raise click.ClickException(f"{len(failed)} of {len(states)} runs failed:{reasons}")
