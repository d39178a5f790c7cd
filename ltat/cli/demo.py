"""`ltat demo`: the whole method beside its baseline, over several seeds, on real data that needs no download."""

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ltat.cli.demo_results import BASELINE, STUDENT, DemoResults
from ltat.cli.launching import require_success
from ltat.config import Asked, RunConfig, from_toml, load_config
from ltat.errors import LtatError
from ltat.files import atomic_write_text

if TYPE_CHECKING:
    from ltat.sweeps import RunPlan, RunState

RECIPES = {STUDENT: "demo/digits-self-distill", BASELINE: "demo/digits-at-bsl"}  # the longer runs begin first
DECIDED = {
    "method": "both methods are the demo's",
    "data.name": "the digits are the demo's data",
    "eval.attacks": "the demo shows clean, PGD-20 and AutoAttack",
    "eval.tau": "the demo shows the networks as they are",
    "eval.n_examples": "--n-examples sets it",
    "seed.train": "--seeds numbers the runs",
}
TEST_IMAGES = 400
FILE = "demo.json"
MARKER = ".ltat-demo"
"""The empty file by which the demo knows a run folder for its own: no other one is ever replaced."""


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/demo"), show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, metavar="N", help="Runs of each.")
@click.option(
    "--n-examples", type=click.IntRange(1, TEST_IMAGES), help=f"Part of the {TEST_IMAGES} test images to evaluate on."
)
@click.option("--set", "assignments", multiple=True, metavar="S.KEY=VALUE", help="A setting of all runs; repeatable.")
def command(out: Path, seeds: int, n_examples: int | None, assignments: tuple[str, ...]) -> None:
    """Train AT-BSL and the LTAT student with its self-teacher on long-tailed digits, and compare them over seeds.

    Every run has one core. A demo that stood in the output folder before is replaced.
    """
    from rich.console import Console

    from ltat.training.run_lock import locked

    started = time.perf_counter()
    plans = plans_of(out, seeds, n_examples, assignments)
    earlier = earlier_runs(out, plans)
    with locked(out, lambda line: click.echo(line, err=True)):
        for folder in [*earlier, *(plan.folder for plan in plans)]:
            with locked(folder, lambda line: None):  # no run of `ltat train` loses its folder
                make_room(folder)
        for folder in earlier:
            shutil.rmtree(folder)
    require_success(carry_out(plans, out))
    results = DemoResults(plans)
    atomic_write_text(out / FILE, json.dumps(results.to_json(), indent=2) + "\n")
    Console().print(results.table())
    for line in explanation(results, seeds):
        click.echo(line)
    click.echo(f"figures of every seed: {out / FILE}; run folders: {out}")
    click.echo(f"{time.perf_counter() - started:.0f} s in all")


def explanation(results: DemoResults, seeds: int) -> list[str]:
    """Lines on what the table shows."""
    digits = {group: ", ".join(map(str, own)) or "none" for group, own in results.classes.items()}
    spread = "mean ± standard deviation" if seeds > 1 else "one seed, whose figures are noisy"
    lines = [f"last checkpoint, {seeds} seed(s): {spread}"]
    if seeds > 1:
        lines.append("gain: self-distill minus AT-BSL, seed by seed, with its 95 % interval (Student's t)")
    return [
        *lines,
        f"rare classes: digits {digits['few']}, with fewer than 20 training images; rarest: {digits['tail']}",
    ]


def plans_of(out: Path, seeds: int, n_examples: int | None, assignments: tuple[str, ...]) -> "list[RunPlan]":
    """The runs, in ``out/METHOD-sSEED``; the settings of one seed are checked for every mistake that they can contain.

    Raises:
        LtatError: wrong settings, or such as make it another run than the demo's.
    """
    from ltat.sweeps import plan_run
    from ltat.training import prepare

    plans = []
    for row, recipe in RECIPES.items():
        every = [checked_settings(recipe, seed, n_examples, assignments) for seed in range(seeds)]
        prepare(every[0])
        for seed, asked in enumerate(every):
            name = f"{asked.config.method}-s{seed}"
            plans.append(plan_run(name, out / name, asked, row))
    return plans


def checked_settings(recipe: str, seed: int, n_examples: int | None, assignments: tuple[str, ...]) -> Asked[RunConfig]:
    """The settings of one run of the demo.

    Raises:
        LtatError: wrong settings, or such as make it another run than the demo's.
    """
    from ltat.methods import find_method

    return load_config(
        lambda name: find_method(name).Config,
        recipe=recipe,
        settings={"eval.n_examples": n_examples, "seed.train": seed},
        assignments=assignments,
        decided=DECIDED,
    )


def earlier_runs(out: Path, plans: "list[RunPlan]") -> list[Path]:
    """The runs of an earlier demo that are not among ``plans``, after a check that all can be replaced.

    Raises:
        LtatError: a folder to be written holds anything but an earlier demo.
    """
    methods = {plan.folder: plan.settings["method"] for plan in plans}
    for folder, method in methods.items():
        check_replaceable(folder, method)
    marked = [marker.parent for marker in sorted(out.absolute().glob(f"*/{MARKER}"))]
    names = [str(plan.settings["method"]) for plan in plans]
    return [path for path in marked if path not in methods and any(is_earlier(path, name) for name in names)]


def check_replaceable(folder: Path, method: str) -> None:
    """Refuse a folder that holds anything but an earlier demo.

    Raises:
        LtatError: naming the folder.
    """
    if not folder.exists() or (folder.is_dir() and not contents(folder)):
        return
    if not is_earlier(folder, method):
        raise LtatError(f"{folder} was not written by `ltat demo`; move it away, or name another --out")


def is_earlier(folder: Path, method: str) -> bool:
    """Whether a demo wrote the folder: it is marked, and a run of ``method`` on digits, or one stopped early."""
    if folder.is_symlink() or not (folder / MARKER).exists():
        return False
    if not (folder / "config.toml").exists():
        return True
    tree = from_toml(folder / "config.toml")
    return (tree.get("method"), tree.get("data", {}).get("name")) == (method, "digits")


def contents(folder: Path) -> list[Path]:
    """What a folder holds beside its lock."""
    from ltat.training import run_lock

    return [path for path in folder.iterdir() if path.name != run_lock.NAME]


def make_room(folder: Path) -> None:
    """Remove an earlier demo's run, all but its lock and the mark of the demo, which a demo cut short must find."""
    try:
        for path in contents(folder):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != MARKER:
                path.unlink()
    except OSError as error:
        raise LtatError(f"{folder} cannot be emptied ({error.strerror}); name another --out") from error
    atomic_write_text(folder / MARKER, "")


def carry_out(plans: "list[RunPlan]", out: Path) -> "dict[str, RunState]":
    """Train and evaluate the runs, one on each core; their teachers are not shared, because each has its seed."""
    from ltat.sweeps import Interrupted, Local, run_sweep

    try:
        return run_sweep(plans, Local(threads=1), out)
    except Interrupted:
        raise click.ClickException("interrupted; the same command starts the demo again") from None
