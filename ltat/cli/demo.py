"""`ltat demo`: the whole method on real data that needs no download."""

import shutil
import time
from pathlib import Path
from typing import Any

import click

RECIPES = {"at-bsl": "demo/digits-at-bsl", "self-distill": "demo/digits-self-distill"}
CHECKPOINTS = {
    "AT-BSL": "at-bsl/last",
    "self-teacher": "self-distill/teacher",
    "student": "self-distill/last",
}


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("runs/demo"), show_default=True)
@click.option("--n-examples", type=click.IntRange(min=1), help="Part of the 400 test images to evaluate on.")
@click.option("--set", "assignments", multiple=True, metavar="S.KEY=VALUE", help="A setting of both runs; repeatable.")
def command(out: Path, n_examples: int | None, assignments: tuple[str, ...]) -> None:
    """Train AT-BSL, the balanced self-teacher and the LTAT student on long-tailed digits, and compare them.

    A demo that stood in the output folder before is replaced.
    """
    from rich.console import Console

    from ltat.evaluation import render_table

    started = time.perf_counter()
    for name, recipe in RECIPES.items():
        train_afresh(recipe, out / name, assignments)
    evaluations = compare(out, n_examples)
    Console().print(render_table(evaluations))
    click.echo("accuracies in percent; the tail is the rarest class; AutoAttack is `standard`")
    click.echo(f"run folders: {', '.join(str(out / name) for name in RECIPES)}")
    click.echo(f"{time.perf_counter() - started:.0f} s in all")


def train_afresh(recipe: str, folder: Path, assignments: tuple[str, ...]) -> None:
    """Train by a recipe into ``folder``, in place of an earlier demo there."""
    from ltat.config import load_config
    from ltat.methods import find_method
    from ltat.training.run import train

    config = load_config(lambda name: find_method(name).Config, recipe=recipe, assignments=assignments)
    if (folder / "config.toml").exists():
        shutil.rmtree(folder)
    train(config, folder)


def compare(out: Path, n_examples: int | None) -> list[Any]:
    """Evaluate the demo's three models: clean, PGD-20 and AutoAttack."""
    from ltat.attacks import ThreatModel
    from ltat.data import load_dataset
    from ltat.evaluation import evaluate
    from ltat.models import load_model, read_card
    from ltat.training.reporting import Reporter

    data = load_dataset("digits", imbalance_ratio=20.0)
    with Reporter() as reporter:
        evaluations = []
        for name, file in CHECKPOINTS.items():
            facts = read_card(out / file).extra
            evaluations.append(
                evaluate(
                    load_model(out / file),
                    data,
                    attacks=("clean", "pgd20", "autoattack"),
                    threat=ThreatModel(**facts["threat_model"]),
                    train_counts=facts["train_counts"],
                    n_examples=n_examples,
                    name=name,
                    on_progress=reporter.evaluation,
                )
            )
    return evaluations
