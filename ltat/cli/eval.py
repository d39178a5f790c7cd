"""`ltat eval`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import click
from pydantic import BaseModel, Field, ValidationError, model_validator

from ltat.cli.options import Radius, Ratio, comma_separated, dataset_options
from ltat.config import from_toml
from ltat.config.loading import shortened
from ltat.config.sections import DataSection
from ltat.errors import LtatError
from ltat.files import check_outputs
from ltat.torchrun import leads
from ltat.units import check_length

if TYPE_CHECKING:
    from ltat.attacks import ThreatModel
    from ltat.evaluation import Evaluation
    from ltat.ranks import Ranks

PLACES = {
    "data_dir": "dir",
    "image_size": "image_size",
    "channels": "channels",
    "train_list": "train_list",
    "test_list": "test_list",
}
"""The settings of a run by the options with the same meaning."""


@click.command("eval")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@dataset_options
@click.option(
    "--test-imbalance-ratio", type=Ratio(), help="Of the test set: as in training if the card knows it, else natural."
)
@click.option("--attacks", default="clean,pgd20", show_default=True, help="clean, pgdK, autoattack; comma-separated.")
@click.option(
    "--n-examples", type=click.IntRange(min=1), metavar="N", help="N test images, as even over classes as N allows."
)
@click.option("--batch-size", type=click.IntRange(min=1), default=256, show_default=True, metavar="N")
@click.option("--eps", type=Radius(), help="Radius for pixels in [0, 1]; the training one if the card knows it.")
@click.option("--norm", type=click.Choice(["linf", "l2"]), help="Another than in training needs --eps.")
@click.option(
    "--adjust",
    type=click.FloatRange(min=0),
    metavar="TAU",
    help="Take TAU log(n/N) of the training set off the logits; the run's eval.tau if the card knows it, else 0.",
)
@click.option(
    "--classes-by-name", is_flag=True, help="Where classes are in another order or fewer, take the model's by name."
)
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True)
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, metavar="N")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON here.")
@click.option("--state-dir", type=click.Path(path_type=Path, file_okay=False), help="Keeps AutoAttack's progress.")
def command(checkpoint: Path, attacks: str, json_file: Path | None, **options: Any) -> None:
    """Evaluate CHECKPOINT, a .safetensors file with its .json card beside it, on a test set.

    What is not named comes from the card: the data set, its imbalance ratio, the threat model. With --state-dir an
    interrupted AutoAttack goes on where it stopped.
    """
    from ltat.ranks import ranks_of_torchrun

    state_dir = options["state_dir"]
    if leads():
        check_outputs(
            {"--json": json_file, "--state-dir": state_dir and state_dir / "autoattack"}, inputs(checkpoint, options)
        )
    with ranks_of_torchrun() as ranks:
        evaluation = run_evaluation(checkpoint, comma_separated(attacks) or (), options, ranks)
    if leads():
        show_evaluation(evaluation, json_file)


def show_evaluation(evaluation: "Evaluation", json_file: Path | None) -> None:
    """The table of an evaluation, and its JSON file.

    Raises:
        ClickException: an attack has no figure.
    """
    from rich.console import Console

    from ltat.evaluation import write_json

    try:
        if json_file is not None:
            write_json(json_file, evaluation)
    finally:  # hours of attacks are shown even where they cannot be written
        Console().print(evaluation.table())
    if evaluation.failed:
        raise click.ClickException(f"no figure of {', '.join(evaluation.failed)}; the flags give the reason")


def inputs(checkpoint: Path, options: dict[str, Any]) -> dict[str, Path | None]:
    """What the command reads and no report may replace, by words for it."""
    own = checkpoint.with_name(checkpoint.name.removesuffix(".safetensors"))
    parts = {
        f"the checkpoint itself ({suffix})": own.with_name(own.name + suffix) for suffix in (".safetensors", ".json")
    }
    lists = {f"the list of --{part}-list": options[f"{part}_list"] for part in ("train", "test")}
    return parts | {"the settings of the run": own.with_name("config.toml")} | lists


class TrainedThreat(BaseModel):
    """The threat model of training, as a card records it; a radius is known for ``linf`` alone."""

    norm: Literal["linf", "l2"] = "linf"
    eps: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 8 / 255

    @model_validator(mode="after")
    def _with_its_radius(self) -> Self:
        if self.norm != "linf" and "eps" not in self.model_fields_set:
            raise ValueError
        return self


class CardExtra(BaseModel):
    """The part of a card that describes the training; other entries are ignored."""

    dataset: str | None = None
    imbalance_ratio: float | Literal["natural"] | None = None
    test_imbalance_ratio: float | Literal["natural"] = "natural"
    imbalance: Literal["exp", "step"] = "exp"
    class_order: Literal["label", "permuted"] = "label"
    subset_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    train_counts: list[Annotated[int, Field(ge=0, le=2**53)]] | None = None
    threat_model: TrainedThreat = TrainedThreat()
    select: str | None = None
    best: bool = False
    eval_tau: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    corrects_prior: bool = False


def run_evaluation(checkpoint: Path, attacks: tuple[str, ...], options: dict[str, Any], ranks: "Ranks") -> "Evaluation":
    """Load the model and its data, and evaluate with a progress bar; the cheapest checks come first."""
    from ltat.evaluation import evaluate
    from ltat.evaluation.adjustment import CORRECTED_TWICE
    from ltat.evaluation.attacks import parse_attack
    from ltat.evaluation.flags import SELECTED_ON_TEST
    from ltat.evaluation.remarks import remarks
    from ltat.models import load_model, order_classes
    from ltat.training.environment import pick_device
    from ltat.training.reporting import reporter_of

    for name in attacks:
        parse_attack(name)
    device = pick_device(options["device"], ranks)
    extra = read_extra(checkpoint)
    threat = threat_model(checkpoint, extra.threat_model, options["norm"], options["eps"])
    model = load_model(checkpoint, device=device)
    data = open_data(checkpoint, extra, options)
    known = model.num_classes
    if options["classes_by_name"]:
        extra = reordered(extra, order_classes(model, data.class_names))
    train_counts = training_counts(extra, data, options)
    with reporter_of(ranks) as reporter:
        for line in remarks(data, attacks, threat.norm, device, options["precision"]):
            reporter.say(line)
        evaluation = evaluate(
            model,
            data,
            attacks=attacks,
            threat=threat,
            train_counts=train_counts,
            adjust=adjustment(checkpoint, extra, train_counts, options),
            n_examples=options["n_examples"],
            batch_size=options["batch_size"],
            seed=options["seed"],
            device=device,
            precision=options["precision"],
            name=model_name(checkpoint),
            state_dir=options["state_dir"],
            on_progress=reporter.evaluation,
            ranks=ranks,
        )
    selected = [SELECTED_ON_TEST] if extra.select == "test" and extra.best else []
    twice = [CORRECTED_TWICE] if evaluation.adjust and extra.corrects_prior else []
    fewer = (
        [] if known == data.num_classes else [f"classes: only {data.num_classes} of the model's {known} can be chosen"]
    )
    return replace(evaluation, flags=[*evaluation.flags, *selected, *twice, *fewer])


def threat_model(checkpoint: Path, trained: TrainedThreat, norm: str | None, eps: float | None) -> "ThreatModel":
    """That of the options, and what they leave out as in training.

    Raises:
        LtatError: another norm than in training without a radius in it, or a radius wider than the box.
    """
    from ltat.attacks import ThreatModel

    if eps is None and norm not in (None, trained.norm):
        raise LtatError(
            f"--norm {norm} needs a radius in that norm, and {trained.eps:.4g}, that of {checkpoint}, is of "
            f"{trained.norm}; add --eps"
        )
    norm, source, radius = norm or trained.norm, "--eps", eps
    if radius is None:
        source, radius = f"the card of {checkpoint}: eps", trained.eps
    check_length(source, radius, norm)
    return ThreatModel(norm, radius)


def adjustment(checkpoint: Path, extra: CardExtra, data_counts: list[int], options: dict[str, Any]) -> Any:
    """What is taken off the logits: by ``--adjust``, else as the run that wrote the checkpoint did.

    The prior is that of the training images, from the card, else from the data set at a ratio that is named.

    Raises:
        LtatError: neither has the number of training images of each class.
    """
    from ltat.evaluation import Adjustment

    tau = extra.eval_tau if options["adjust"] is None else options["adjust"]
    if not tau:
        return None
    if extra.train_counts is not None:
        return Adjustment(tau, extra.train_counts)
    as_trained = options["dataset"] in (None, extra.dataset)
    if options["imbalance_ratio"] is None and not (as_trained and extra.imbalance_ratio is not None):
        raise LtatError(f"the card of {checkpoint} has no training counts to adjust by; add --imbalance-ratio")
    return Adjustment(tau, data_counts)


def read_extra(checkpoint: Path) -> CardExtra:
    """What the checkpoint's card knows about its training.

    Raises:
        LtatError: something in it is of another kind than it must be.
    """
    from ltat.models import read_card

    try:
        return CardExtra.model_validate(read_card(checkpoint).extra)
    except ValidationError as error:
        first = error.errors()[0]
        raise LtatError(
            f"the card of {checkpoint} cannot be used: {first['loc'][0]} holds {shortened(repr(first['input']))}; "
            "correct it there, or save the model again"
        ) from None


def reordered(extra: CardExtra, rows: list[int]) -> CardExtra:
    """The record of a network of which the outputs ``rows`` were taken."""
    if extra.train_counts is None or len(extra.train_counts) <= max(rows):
        return extra
    return extra.model_copy(update={"train_counts": [extra.train_counts[row] for row in rows]})


def open_data(checkpoint: Path, extra: CardExtra, options: dict[str, Any]) -> Any:
    """The data set of the options, else of the card.

    Raises:
        LtatError: neither the command nor the card names a data set, or it cannot be read.
    """
    from ltat.data import load_dataset

    name, ratio = options["dataset"] or extra.dataset, options["imbalance_ratio"]
    if name is None:
        raise LtatError(f"the card of {checkpoint} names no data set; add --dataset")
    as_trained = name == extra.dataset
    if ratio is None:
        ratio = extra.imbalance_ratio if as_trained and extra.imbalance_ratio is not None else "natural"
    return load_dataset(
        name,
        imbalance_ratio=ratio,
        test_imbalance_ratio=ratio_of_test_set(extra, as_trained, options["test_imbalance_ratio"]),
        imbalance=extra.imbalance if as_trained else "exp",
        class_order=extra.class_order if as_trained else "label",
        subset_seed=extra.subset_seed,
        download=bool(options["download"]),
        **{name: options[name] or value for name, value in places_of_run(checkpoint, as_trained).items()},
    )


def ratio_of_test_set(extra: CardExtra, as_trained: bool, asked: float | str | None) -> float | str:
    """That of the option, else of the run on its own data set; natural, the whole test set, on another."""
    if asked is not None:
        return asked
    return extra.test_imbalance_ratio if as_trained else "natural"


def training_counts(extra: CardExtra, data: Any, options: dict[str, Any]) -> list[int]:
    """The training images per class that define the groups of classes: the card's, or those of a set that is named."""
    as_trained = options["dataset"] in (None, extra.dataset)
    if as_trained and options["imbalance_ratio"] is None and extra.train_counts is not None:
        return extra.train_counts
    counts: list[int] = data.train.counts.tolist()
    return counts


def places_of_run(checkpoint: Path, as_trained: bool) -> dict[str, Any]:
    """Where the run that wrote the checkpoint found its data, read from the settings that lie beside it.

    Raises:
        LtatError: a setting there is of another kind than it must be.
    """
    file = checkpoint.parent / "config.toml"
    stored = from_toml(file).get("data", {}) if as_trained and file.exists() else {}
    try:
        settings = DataSection.model_validate({key: stored[key] for key in PLACES.values() if key in stored})
    except ValidationError as error:
        first = error.errors()[0]
        raise LtatError(
            f"{file}: data.{first['loc'][0]} holds {shortened(repr(first['input']))}; correct it there"
        ) from None
    return {name: getattr(settings, key) for name, key in PLACES.items()}


def model_name(checkpoint: Path) -> str:
    """The run folder and the checkpoint in it, such as ``first/best``."""
    folder = checkpoint.parent.resolve().name
    return f"{folder}/{checkpoint.name.removesuffix('.safetensors')}".removeprefix("/")
