"""`ltat eval`."""

from pathlib import Path
from typing import Any

import click

from ltat.cli.options import Radius, comma_separated, dataset_options
from ltat.config import from_toml
from ltat.errors import LtatError


@click.command("eval")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@dataset_options
@click.option("--attacks", default="clean,pgd20", show_default=True, help="clean, pgdK, autoattack; comma-separated.")
@click.option("--n-examples", type=click.IntRange(min=1), metavar="N", help="A class-balanced part of the test set.")
@click.option("--batch-size", type=click.IntRange(min=1), default=256, show_default=True, metavar="N")
@click.option("--eps", type=Radius(), help="Radius for pixels in [0, 1]; the training one if the card knows it.")
@click.option("--norm", type=click.Choice(["linf", "l2"]), help="The training norm if the card knows it.")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON here.")
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="Keeps AutoAttack's progress.")
def command(checkpoint: Path, attacks: str, json_file: Path | None, **options: Any) -> None:
    """Evaluate CHECKPOINT, a .safetensors file with its .json card beside it, on a test set.

    What is not named comes from the card: the data set, its imbalance ratio, the threat model. With --state-dir an
    interrupted AutoAttack goes on where it stopped.
    """
    from rich.console import Console

    from ltat.evaluation import write_json

    evaluation = run_evaluation(checkpoint, comma_separated(attacks) or (), options)
    if json_file is not None:
        write_json(json_file, evaluation)
    Console().print(evaluation.table())


def run_evaluation(checkpoint: Path, attacks: tuple[str, ...], options: dict[str, Any]) -> Any:
    """Load the model and its data, and evaluate with a progress bar."""
    from ltat.data import load_dataset
    from ltat.evaluation import evaluate
    from ltat.models import load_model, read_card
    from ltat.training.environment import pick_device
    from ltat.training.reporting import Reporter

    device = pick_device(options["device"])
    model, facts = load_model(checkpoint, device=device), read_card(checkpoint).extra
    name, same = data_set_name(options["dataset"], facts, checkpoint)
    ratio = options["imbalance_ratio"] or (facts.get("imbalance_ratio") if same else None) or "natural"
    data = load_dataset(
        name,
        options["data_dir"] or folder_of_run(checkpoint, same),
        imbalance_ratio=ratio,
        subset_seed=facts.get("subset_seed", 0),
        download=bool(options["download"]),
    )
    with Reporter() as reporter:
        return evaluate(
            model,
            data,
            attacks=attacks,
            threat=threat_model(options, facts),
            train_counts=facts["train_counts"] if same and "train_counts" in facts else data.train.counts.tolist(),
            n_examples=options["n_examples"],
            batch_size=options["batch_size"],
            seed=options["seed"],
            device=device,
            precision=options["precision"],
            name=checkpoint.name,
            state_dir=options["state_dir"],
            on_progress=reporter.evaluation,
        )


def data_set_name(wanted: str | None, facts: dict[str, Any], checkpoint: Path) -> tuple[str, bool]:
    """The data set to evaluate on, and whether it is the one that the card names.

    Raises:
        LtatError: neither the command nor the card names one.
    """
    known = facts.get("dataset")
    name = wanted or known
    if name is None:
        raise LtatError(f"the card of {checkpoint} names no data set; add --dataset")
    return name, name == known


def folder_of_run(checkpoint: Path, same_data: bool) -> str | None:
    """Where the run that wrote the checkpoint found its data, read from the settings that lie beside it."""
    settings = checkpoint.parent / "config.toml"
    if not same_data or not settings.exists():
        return None
    folder: str | None = from_toml(settings).get("data", {}).get("dir")
    return folder


def threat_model(options: dict[str, Any], facts: dict[str, Any]) -> Any:
    """The threat model of the options, else of the card, else the l-inf ball of radius 8/255."""
    from ltat.attacks import ThreatModel

    trained = facts.get("threat_model", {})
    eps = trained.get("eps", 8 / 255) if options["eps"] is None else options["eps"]
    return ThreatModel(norm=options["norm"] or trained.get("norm", "linf"), eps=eps)
