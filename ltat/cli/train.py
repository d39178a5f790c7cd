"""`ltat train`."""

import hashlib
import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltat.cli.options import dataset_options, printing
from ltat.config import Asked, RunConfig, from_toml, load_config
from ltat.config.recipes import find_recipe, list_recipes
from ltat.config.reference import commented_toml
from ltat.errors import LtatError
from ltat.files import exists
from ltat.torchrun import repeated

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
WORDS_LENGTH = 48  # of what a default folder's name adds in words


def show_recipes() -> None:
    """Every recipe by name, and where it comes from."""
    for name, recipe in list_recipes().items():
        click.echo(f"{name}\n    {recipe.source}")


@click.command("train")
@click.option("--recipe", metavar="NAME|FILE", help="A published setting, a TOML file of settings, or FILE:NAME.")
@dataset_options
@click.option("--method", metavar="M", help="A method by name (`ltat methods`), or file.py:MyMethod.")
@click.option(
    "--model",
    metavar="M",
    help="resnet18 (default), preactresnet18, wrn34-10, wrn28-10, wrn28-10-silu, mobilenetv2, resnet8-s2 or small.",
)
@click.option(
    "--teacher", metavar="CKPT", help="A trained teacher; without it self-distill trains one, the others stop."
)
@click.option("--epochs", type=int, metavar="N")
@click.option("--batch-size", type=int, metavar="N")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Of the network body.")
@click.option("--device", metavar="auto|cpu|cuda")
@click.option("--loader", metavar="auto|resident|ffcv|torch", help="Where batches come from; they are the same.")
@click.option("--seed", type=int, metavar="N", help="Of training; seed.subset and seed.db are set apart.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="The run folder.")
@click.option("--resume", is_flag=True, help="Continue the run that stands in the run folder.")
@click.option("--profile", is_flag=True, help="Write a Chrome trace of a few steps into the run folder.")
@click.option("--set", "assignments", multiple=True, metavar="S.KEY=VALUE", help="Any other setting; repeatable.")
@printing("--list-recipes", show_recipes, "List the recipes with their sources")
@click.option("--show-config", is_flag=True, help="Print the resolved settings and stop.")
def command(
    recipe: str | None,
    out: Path | None,
    resume: bool,
    profile: bool,
    assignments: tuple[str, ...],
    show_config: bool,
    **options: Any,
) -> None:
    """Train a robust classifier on long-tailed data.

    Settings come from the method's published ones, then the recipe, then the options, then --set: later wins, and of
    an option given twice the last. `--show-config` prints them all; docs/settings.md explains each.
    """
    from ltat.config.resolving import for_dataset
    from ltat.methods import absolute_method

    if options["method"] is not None:
        options["method"] = absolute_method(options["method"])
    settings = {NAMES[name]: value for name, value in options.items()}
    standing = resumed_settings(out, recipe, settings) if resume and out is not None else None
    asked = load_config(
        lambda name: settings_of(name, options["method"]),
        recipe=recipe or standing,
        settings=settings,
        assignments=assignments,
    )
    if show_config:
        click.echo(commented_toml(for_dataset(asked).config), nl=False)
        return
    folder = out or default_folder(asked)
    report = train_resumably(asked, folder, resume, profile)
    show_report(report, folder)


def settings_of(name: str, asked: str | None) -> type[RunConfig]:
    """The settings class of the method called ``name``; ``asked`` is the method of the command line.

    Raises:
        LtatError: there is no such method, or a file of settings names a Python file, which only a person may run.
    """
    from ltat.methods import find_method, is_user_method

    if is_user_method(name) and name != asked:
        raise LtatError(
            f"the settings name the Python file {name}, which would be run; if you trust it: --method {name}"
        )
    return find_method(name).Config


def resumed_settings(out: Path, recipe: str | None, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of the run that stands in ``out``, so that `--resume --out DIR` needs nothing else.

    None where no run stands there yet and the command names one to start: a scheduler may give the same
    command with --resume first and every time after.

    Raises:
        LtatError: no run stands there and none is described, or one of another method stands there.
    """
    if not exists(out / "config.toml"):
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


def default_folder(asked: Asked[RunConfig]) -> Path:
    """runs/DATASET-RATIO-MODEL-METHOD-sSEED, then what else sets the run apart from one by the method's defaults."""
    from ltat.config.resolving import for_dataset
    from ltat.methods import method_label

    config = for_dataset(asked).config
    data = config.data
    ratio = data.imbalance_ratio if data.imbalance_ratio == "natural" else f"ir{data.imbalance_ratio:g}"
    label = method_label(config.method)
    name = f"{data.name}-{ratio}-{config.model.name}-{label}-s{config.seed.train}"
    others = other_settings(config) | ({} if label == config.method else {"method": config.method})
    return Path("runs") / "-".join([name, *in_few_words(others)])


def other_settings(config: RunConfig) -> dict[str, object]:
    """The settings, by the name of their option where they have one, that differ from the defaults of such a run."""
    from ltat.config.resolving import for_dataset
    from ltat.data import find_spec
    from ltat.training.run_folder import differing_settings

    data = config.data
    same_everywhere = find_spec(data.name).default_ratio != "natural"  # a published set, wherever it lies
    place = {"dir": data.dir} if same_everywhere else {}
    named = {
        "method": config.method,
        "data": {"name": data.name, "imbalance_ratio": data.imbalance_ratio, **place},
        "model": {"name": config.model.name},
        "seed": {"train": config.seed.train},
    }
    plain = for_dataset(Asked(type(config).model_validate(named))).config.model_dump(mode="json")
    own = config.model_dump(mode="json")
    options = {setting: option for option, setting in NAMES.items()}
    return {options.get(name, name): at_path(own, name) for name in differing_settings(plain, own)}


def at_path(tree: Any, dotted: str) -> object:
    """The value of a dotted name."""
    for key in dotted.split("."):
        tree = tree[key]
    return tree


def in_few_words(settings: dict[str, object]) -> list[str]:
    """Each as NAME=VALUE where that makes a short name of plain letters, else all as one short checksum."""
    words = [f"{name}={value}" for name, value in settings.items()]
    if len("-".join(words)) <= WORDS_LENGTH and all(re.fullmatch(r"[\w.+=-]+", word, re.ASCII) for word in words):
        return words
    return [hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]]


def train_resumably(
    asked: Asked[RunConfig], folder: Path, resume: bool, profile: bool = False
) -> "dict[str, Evaluation]":
    """Train; an interruption prints the command that resumes."""
    from ltat.ranks import ranks_of_torchrun
    from ltat.training.run import train

    try:
        with ranks_of_torchrun() as ranks:
            return train(asked, folder, resume=resume, profile=profile, ranks=ranks)
    except KeyboardInterrupt:
        if not (folder / "config.toml").exists():
            raise click.ClickException("interrupted before the run began; nothing was written") from None
        again = f"{repeated()} train --out {shlex.quote(str(folder))} --resume"
        raise click.ClickException(f"interrupted; continue with `{again}`") from None


def show_report(report: "dict[str, Evaluation]", folder: Path) -> None:
    """The table of a run, and where its files lie."""
    from rich.console import Console

    from ltat.evaluation import render_table

    Console().print(render_table(list(report.values())))
    click.echo(f"run folder: {folder}")
    failed = [f"{role}: {', '.join(evaluation.failed)}" for role, evaluation in report.items() if evaluation.failed]
    if failed:
        raise click.ClickException(
            f"no figure of {'; '.join(failed)}; the flags give the reason, `ltat eval` repeats it"
        )
