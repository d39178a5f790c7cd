"""`ltat demo`: the whole method on real data that needs no download."""

import shutil
import time
from pathlib import Path
from typing import Any

import click

from ltat.config import Asked, RunConfig, from_toml, load_config
from ltat.errors import LtatError
from ltat.files import atomic_write_text

RECIPES = {"at-bsl": "demo/digits-at-bsl", "self-distill": "demo/digits-self-distill"}
ATTACKS = ("clean", "pgd20", "autoattack")
CHECKPOINTS = {
    "AT-BSL": ("at-bsl/last", ATTACKS),
    "self-teacher": ("self-distill/teacher", ATTACKS[:2]),  # AutoAttack takes most of the time: the final models only
    "student": ("self-distill/last", ATTACKS),
}
DECIDED = {
    "method": "both methods are the demo's",
    "data.name": "the digits are the demo's data",
    "eval.attacks": "the demo shows clean, PGD-20 and AutoAttack",
    "eval.tau": "the demo shows the networks as they are",
    "eval.n_examples": "--n-examples sets it",
}
TEST_IMAGES = 400
MARKER = ".ltat-demo"
"""The empty file by which the demo knows a run folder for its own: no other one is ever replaced."""


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/demo"), show_default=True)
@click.option(
    "--n-examples", type=click.IntRange(1, TEST_IMAGES), help=f"Part of the {TEST_IMAGES} test images to evaluate on."
)
@click.option("--set", "assignments", multiple=True, metavar="S.KEY=VALUE", help="A setting of both runs; repeatable.")
def command(out: Path, n_examples: int | None, assignments: tuple[str, ...]) -> None:
    """Train AT-BSL, the balanced self-teacher and the LTAT student on long-tailed digits, and compare them.

    A demo that stood in the output folder before is replaced.
    """
    from rich.console import Console

    from ltat.evaluation import render_table
    from ltat.training import train
    from ltat.training.run_lock import locked

    started = time.perf_counter()
    runs = {out / name: checked_settings(recipe, assignments, n_examples) for name, recipe in RECIPES.items()}
    for folder, asked in runs.items():
        check_replaceable(folder, asked.config)
    with locked(out, lambda line: click.echo(line, err=True)):
        for folder, asked in runs.items():
            with locked(folder, lambda line: None):  # no run of `ltat train` loses its folder
                make_room(folder)
            train(asked, folder)
        evaluations = compare(out, runs[out / "self-distill"].config, n_examples)
    Console().print(render_table(evaluations))
    click.echo("accuracies in percent; the tail is the rarest class; AutoAttack (`standard`) attacks the final models")
    click.echo(f"run folders: {', '.join(map(str, runs))}")
    click.echo(f"{time.perf_counter() - started:.0f} s in all")


def checked_settings(recipe: str, assignments: tuple[str, ...], n_examples: int | None) -> Asked[RunConfig]:
    """The settings of one run of the demo, checked for every mistake that they can contain.

    Raises:
        LtatError: wrong settings, or such as make it another run than the demo's.
    """
    from ltat.methods import find_method
    from ltat.training import prepare

    asked = load_config(
        lambda name: find_method(name).Config,
        recipe=recipe,
        settings={"eval.n_examples": n_examples},
        assignments=assignments,
        decided=DECIDED,
    )
    prepare(asked)
    return asked


def check_replaceable(folder: Path, config: RunConfig) -> None:
    """Refuse a folder that holds anything but an earlier demo.

    Raises:
        LtatError: naming the folder.
    """
    if not folder.exists() or (folder.is_dir() and not contents(folder)):
        return
    if folder.is_symlink() or not (folder / MARKER).exists() or not same_run(folder / "config.toml", config):
        raise LtatError(f"{folder} was not written by `ltat demo`; move it away, or name another --out")


def same_run(settings: Path, config: RunConfig) -> bool:
    """Whether the settings file is absent, as in a demo stopped early, or of the same method and data set."""
    if not settings.exists():
        return True
    tree = from_toml(settings)
    return (tree.get("method"), tree.get("data", {}).get("name")) == (config.method, config.data.name)


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


def compare(out: Path, config: RunConfig, n_examples: int | None) -> list[Any]:
    """Evaluate the models of :data:`CHECKPOINTS`, each under its attacks, with the settings of ``config``."""
    from ltat.attacks import ThreatModel
    from ltat.data import load_dataset
    from ltat.evaluation import evaluate
    from ltat.models import load_model, read_card
    from ltat.training.environment import pick_device
    from ltat.training.reporting import Reporter

    data = load_dataset("digits", imbalance_ratio=20.0)
    device = pick_device(config.train.device)
    with Reporter() as reporter:
        evaluations = []
        for name, (file, attacks) in CHECKPOINTS.items():
            extra = read_card(out / file).extra
            evaluations.append(
                evaluate(
                    load_model(out / file, device=device),
                    data,
                    attacks=attacks,
                    threat=ThreatModel(**extra["threat_model"]),
                    train_counts=extra["train_counts"],
                    n_examples=n_examples,
                    batch_size=config.eval.batch_size,
                    name=name,
                    on_progress=reporter.evaluation,
                )
            )
    return evaluations
