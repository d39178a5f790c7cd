"""`ltat sweep`: a grid of methods, seeds and settings, on this machine or as jobs of a cluster."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltat.cli.launching import carry_out, chosen_launcher, launcher_options, require_success, show_results
from ltat.files import check_outputs

if TYPE_CHECKING:
    from ltat.sweeps import RunPlan


@click.command("sweep")
@click.argument("spec", type=click.Path(path_type=Path, dir_okay=False))
@launcher_options
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="The folder of the sweep, not SPEC's.")
@click.option("--method", "trusted", multiple=True, metavar="FILE.py:M", help="A method in a file that SPEC may run.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write the figures here."
)
@click.option("--dry-run", is_flag=True, help="Print the runs and how far each is, and stop.")
def command(
    spec: Path,
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

    launcher = chosen_launcher(options)
    sweep = load_sweep(spec, out, trusted)
    check_outputs({"--json": json_file, "--out": sweep.out / "RUN"})
    plans = share_teachers(sweep.plans, sweep.out)
    for line in sweep.remarks:
        click.echo(line, err=True)
    if dry_run:
        return list_runs(plans, sweep.out)
    states = carry_out(plans, launcher, sweep.out)
    show_results(plans, states, json_file)
    click.echo(f"run folders: {sweep.out}")
    require_success(states)


def list_runs(plans: "list[RunPlan]", out: Path) -> None:
    """Print a line for each run and each teacher, and how far it is."""
    from ltat.sweeps import states_of
    from ltat.sweeps.state import Records
    from ltat.sweeps.table import described

    for name, state in states_of(plans, Records(out)).items():
        reached = f", epoch {state.epoch} of {state.epochs}" if state.epoch else ""
        click.echo(f"{name}: {described(state)}{reached}")
