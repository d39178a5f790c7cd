"""`ltat train`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltat.cli.options import dataset_options
from ltat.config import RunConfig, from_toml, load_config, to_toml
from ltat.config.loading import find_recipe
from ltat.errors import LtatError

if TYPE_CHECKING:
    from ltat.evaluation import Evaluation

NAMES = {
    "dataset": "data.name",
    "data_dir": "data.dir",
    "imbalance_ratio": "data.imbalance_ratio",
    "download": "data.download",
    "image_size": "data.image_size",
    "channels": "data.channels",
    "train_list": "data.train_list",
    "test_list": "data.test_list",
    "method": "method",
    "model": "model.name",
    "teacher": "teacher.path",
    "epochs": "train.epochs",
    "batch_size": "train.batch_size",
    "precision": "train.precision",
    "device": "train.device",
    "loader": "loader.kind",
    "seed": "seed.train",
}
"""From the options to the settings they stand for."""


@click.command("train")
@click.option("--recipe", metavar="NAME|FILE", help="A published setting, or a TOML file of settings.")
@dataset_options
@click.option("--method", metavar="M", help="self-distill (default), at-bsl, pgd-at, reat, robal or taet.")
@click.option("--model", metavar="M", help="resnet18 (default), preactresnet18, wrn34-10, mobilenetv2 or small.")
@click.option("--teacher", metavar="CKPT", help="A trained teacher; without it self-distill trains one first.")
@click.option("--epochs", type=int, metavar="N")
@click.option("--batch-size", type=int, metavar="N")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Of the network body.")
@click.option("--device", metavar="auto|cpu|cuda")
@click.option("--loader", metavar="auto|resident|ffcv|torch", help="Where batches come from; they are the same.")
@click.option("--seed", type=int, metavar="N", help="Of training; seed.subset and seed.db are set apart.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="The run folder.")
@click.option("--resume", is_flag=True, help="Continue the run that stands in the run folder.")
@click.option("--set", "assignments", multiple=True, metavar="S.KEY=VALUE", help="Any other setting; repeatable.")
@click.option("--show-config", is_flag=True, help="Print the resolved settings and stop.")
def command(
    recipe: str | None,
    out: Path | None,
    resume: bool,
    assignments: tuple[str, ...],
    show_config: bool,
    **options: Any,
) -> None:
    """Train a robust classifier on long-tailed data.

    Settings come from the method's published ones, then the recipe, then the options, then --set. `--show-config`
    prints them all; docs/settings.md explains each.
    """
    from ltat.methods import find_method
    from ltat.training.task import resolve

    settings = {NAMES[name]: value for name, value in options.items()}
    standing = resumed_settings(out, recipe, settings) if resume and out is not None else None
    config = load_config(
        lambda name: find_method(name).Config,
        recipe=recipe or standing,
        settings=settings,
        assignments=assignments,
    )
    if show_config:
        click.echo(to_toml(resolve(config)), nl=False)
        return
    folder = out or default_folder(resolve(config))
    show_report(train_resumably(config, folder, resume), folder)


def resumed_settings(out: Path, recipe: str | None, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of the run that stands in ``out``, so that `--resume --out DIR` needs nothing else.

    None where no run stands there yet and the command says which one to start: a scheduler may give the same
    command with --resume first and every time after.

    Raises:
        LtatError: no run stands there and none is described, or one of another method stands there.
    """
    if not (out / "config.toml").exists():
        if recipe is None and settings["data.name"] is None and settings["method"] is None:
            raise LtatError(f"{out} holds no run to resume; leave --resume out, or correct --out")
        return None
    standing = from_toml(out / "config.toml")
    asked = settings["method"] or (find_recipe(recipe).get("method") if recipe else None)
    if asked is not None and asked != standing.get("method"):
        raise LtatError(
            f"{out} holds a run of method {standing.get('method')!r}, not {asked!r}; "
            "leave --method and --recipe out to resume it, or name another --out"
        )
    return standing


def default_folder(config: RunConfig) -> Path:
    """runs/DATASET-RATIO-MODEL-METHOD-sSEED."""
    data = config.data
    ratio = data.imbalance_ratio if data.imbalance_ratio == "natural" else f"ir{data.imbalance_ratio:g}"
    return Path("runs") / f"{data.name}-{ratio}-{config.model.name}-{config.method}-s{config.seed.train}"


def train_resumably(config: RunConfig, folder: Path, resume: bool) -> "dict[str, Evaluation]":
    """Train; an interruption tells how to go on."""
    from ltat.training.run import train

    try:
        return train(config, folder, resume=resume)
    except KeyboardInterrupt:
        if not (folder / "config.toml").exists():
            raise click.ClickException("interrupted before the run began; nothing was written") from None
        again = f"ltat train --out {shlex.quote(str(folder))} --resume"
        raise click.ClickException(f"interrupted; continue with `{again}`") from None


def show_report(report: "dict[str, Evaluation]", folder: Path) -> None:
    """The table of a run, and where its files lie."""
    from rich.console import Console

    from ltat.evaluation import render_table

    Console().print(render_table(list(report.values())))
    click.echo(f"run folder: {folder}")
