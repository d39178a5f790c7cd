"""`ltat bench`: the benches are programs in the repository's bench/, which the installed package does not contain."""

import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import click

from ltat.cli.options import printing
from ltat.errors import LtatError

ROOT = Path(__file__).resolve().parents[2]


def show_benches() -> None:
    """Every bench by name, with its measurement."""
    for bench, sentence in find_benches(ROOT).items():
        click.echo(f"{bench:16}{sentence}")


@click.command("bench")
@click.argument("name", required=False)
@printing("--list", show_benches, "List the benches")
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads; each bench has its own default.")
@click.option("--rounds", type=click.IntRange(1), help="Rounds; each bench has its own default.")
@click.option("--results", type=click.Path(file_okay=False), help="Folder for the rows in place of bench/results.")
def command(name: str | None, **options: object) -> None:
    """Measure one bench, or all of them, beside what people use today.

    Every bench runs in a separate process and appends its rows; `python -m bench.NAME --help` lists further options.
    """
    benches = find_benches(ROOT)
    if name is not None and name not in benches:
        raise LtatError(f"unknown bench {name!r}; choose one of {', '.join(benches)}")
    given = [f"--{option}={value}" for option, value in options.items() if value is not None]
    run_benches([name] if name else list(benches), given)


def find_benches(root: Path) -> dict[str, str]:
    """What each bench measures, by name.

    Raises:
        LtatError: ``root`` is not a source checkout.
    """
    table = root / "bench" / "__init__.py"
    if not table.exists():
        raise LtatError("the benches are not part of the installed package; run `ltat bench` in a clone of ltat")
    benches: dict[str, str] = runpy.run_path(str(table))["BENCHES"]
    return benches


def run_benches(names: list[str], options: list[str]) -> None:
    """Run benches one after the other; one that fails does not keep the others from running.

    Raises:
        LtatError: naming those that failed.
    """
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    failed = []
    for name in names:
        started = time.perf_counter()
        click.echo(f"{name} …", err=True)
        program = [sys.executable, "-P", "-m", f"bench.{name}", *options]  # -P: no other `bench` of this folder
        code = subprocess.run(program, env=os.environ | {"PYTHONPATH": path}, check=False).returncode
        click.echo(f"{name}: {time.perf_counter() - started:.0f} s", err=True)
        failed += [name] if code else []
    if failed:
        raise LtatError(f"these benches failed: {', '.join(failed)}; see their output above")
