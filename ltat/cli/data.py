"""`ltat data info` and `ltat data prepare`."""

import contextlib
import json
import shlex
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ltat.cli.options import Command, dataset_options
from ltat.errors import LtatError
from ltat.files import appearing_together, atomic_write_text, check_outputs, check_writable

if TYPE_CHECKING:
    from ltat.data import Dataset

BAR_WIDTH = 40
CLASSES_SHOWN = 40


@click.group("data")
def command() -> None:
    """Describe a data set, or write it as files that load fast."""


def data_options(command: Command) -> Command:
    """The data set as an argument or by --dataset, and which part of it."""
    named = click.argument("named", metavar="[DATASET]", required=False)
    seed = click.option("--subset-seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
    return named(dataset_options(seed(command)))


@command.command("info")
@data_options
@click.option("--png", type=click.Path(path_type=Path, dir_okay=False), help="Also write the bar chart here.")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="Also write JSON here.")
def info(png: Path | None, json_file: Path | None, **options: Any) -> None:
    """Counts per class, imbalance ratio, groups of classes, the size of D_B and the index hash of DATASET."""
    check_outputs({"--png": png, "--json": json_file})
    data = open_dataset(options)
    summary = describe(data)
    if json_file is not None:
        atomic_write_text(json_file, json.dumps(summary, indent=2) + "\n")
    if png is not None:
        from ltat.evaluation.chart import write_counts_chart

        title = f"{data.name}: {len(data.train):,} training images, imbalance ratio {summary['imbalance_ratio']:.4g}"
        write_counts_chart(png, data.train.counts, data.class_names, title)
    show(summary)


@command.command("prepare")
@data_options
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder to write.")
@click.option("--format", "layout", type=click.Choice(["npz", "beton"]), default="npz", show_default=True)
@click.option("--mode", type=click.Choice(["raw", "jpeg"]), help="beton: how pixels are kept; raw by default.")
@click.option("--quality", type=click.IntRange(1, 100), metavar="N", help="beton: of --mode jpeg; 95 by default.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="beton: writing processes; 1 by default.")
def prepare(out: Path, layout: str, **options: Any) -> None:
    """Write DATASET, long-tailed or whole, as train and test files, for --dataset npz or --dataset beton."""
    from ltat.training.reporting import Reporter

    settings = {name: value for name in ("mode", "quality", "workers") if (value := options.pop(name)) is not None}
    write = WRITERS[layout](**settings)
    for part in ("train", "test"):
        if (out / f"{part}.{layout}").exists():
            raise LtatError(f"{out / part}.{layout} exists already; remove it, or name another --out")
        check_writable(out / f"{part}.{layout}")
    data = open_dataset(options)
    with undone_when_stopped(), appearing_together(out) as folder, Reporter() as reporter:
        for name, split in {"test": data.test, "train": data.train}.items():
            file = f"{name}.{layout}"
            write(data, split, folder / file, partial(reporter.evaluation, file))
    click.echo(f"{len(data.train)} training and {len(data.test)} test images -> {out}")
    place = shlex.quote(str(out))
    click.echo(f"train on them with: ltat train --dataset {layout} --data-dir {place}{usual_settings(options, layout)}")


@contextlib.contextmanager
def undone_when_stopped() -> Iterator[None]:
    """On Ctrl-C, report that nothing was written; SIGTERM, which batch systems send, ends as tidily."""

    def stop(*_: object) -> None:
        raise click.ClickException("terminated; nothing was written")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        raise click.ClickException("interrupted; nothing was written") from None
    finally:
        signal.signal(signal.SIGTERM, before)


Writer = Callable[["Dataset", Any, Path, Callable[[int, int], None]], None]
"""Writes a split of a data set to a path, reporting its progress."""


def npz_writer(**settings: Any) -> Writer:
    """The writer of the npz layout, which has no settings."""
    if settings:
        raise LtatError(f"--{next(iter(settings))} belongs to --format beton; leave it out")
    from ltat.data.npz import write_npz

    return lambda data, split, path, progress: write_npz(split, path, data.class_names, on_progress=progress)


def beton_writer(**settings: Any) -> Writer:
    """The writer of FFCV's files."""
    if "quality" in settings and settings.get("mode") != "jpeg":
        raise LtatError("--quality belongs to --mode jpeg; add that, or leave it out")
    from ltat.data.beton import write_beton

    return lambda data, split, path, progress: write_beton(
        split, path, data.class_names, name=data.name, on_progress=progress, **settings
    )


WRITERS: dict[str, Callable[..., Writer]] = {"npz": npz_writer, "beton": beton_writer}


def open_dataset(options: dict[str, Any]) -> "Dataset":
    """The data set of the options, at the literature's imbalance ratio where none is named."""
    from ltat.data import find_spec, load_dataset

    rest = dict(options)
    named, dataset = rest.pop("named"), rest.pop("dataset")
    name = named or dataset
    if name is None:
        raise LtatError("no data set is named; add --dataset, for example --dataset digits")
    if dataset not in (None, name):
        raise LtatError(f"two data sets are named, {named!r} and {dataset!r}; leave one out")
    ratio, download = rest.pop("imbalance_ratio"), bool(rest.pop("download"))
    ratio = find_spec(name).default_ratio if ratio is None else ratio
    return load_dataset(name, imbalance_ratio=ratio, download=download, **rest)


def describe(data: "Dataset") -> dict[str, Any]:
    """The description that `ltat data info` prints, as plain numbers and names."""
    from ltat.data import balanced_sizes, index_hash
    from ltat.evaluation import class_groups

    counts = data.train.counts
    groups = class_groups(data.num_classes, counts)
    return {
        "name": data.name,
        "train_images": len(data.train),
        "test_images": len(data.test),
        "image_shape": list(data.image_shape),
        "class_names": list(data.class_names),
        "passed_over": dict(data.passed_over),
        "counts": counts.tolist(),
        "imbalance_ratio": float(counts.max() / counts.min()),
        "groups": {
            name: {"classes": int(own.sum()), "train_images": int(counts[own].sum())}
            for name, own in groups.items()
            if own is not None
        },
        "balanced_images": int(balanced_sizes(counts).sum()),
        "index_sha256": index_hash(data.train.indices),
    }


def show(summary: dict[str, Any]) -> None:
    """Print what ``describe`` found, the counts as bars."""
    from ltat.data.split import listed

    names, counts = [shown(name) for name in summary["class_names"]], summary["counts"]
    width, shape = max(map(len, names[:CLASSES_SHOWN])), "x".join(map(str, summary["image_shape"]))
    train, test = summary["train_images"], summary["test_images"]
    click.echo(f"{shown(summary['name'])}: {train} training and {test} test images of {shape}")
    for name, n in list(zip(names, counts, strict=True))[:CLASSES_SHOWN]:
        click.echo(f"  {name:>{width}} {n:6d} {'█' * max(1, round(BAR_WIDTH * n / max(counts)))}")
    if len(counts) > CLASSES_SHOWN:
        click.echo(f"  … and {len(counts) - CLASSES_SHOWN} classes more, down to {min(counts)} images")
    if summary["passed_over"]:
        click.echo(f"passed over: {shown(listed(summary['passed_over']))}")
    click.echo(f"imbalance ratio {summary['imbalance_ratio']:.4g}")
    for name, group in summary["groups"].items():
        click.echo(f"{name}: {group['classes']} of {len(counts)} classes, {group['train_images']} training images")
    click.echo(f"D_B holds {summary['balanced_images']} images")
    click.echo(f"index hash {summary['index_sha256']}")


def shown(name: str) -> str:
    """The name without what would steer the terminal."""
    return name if name.isprintable() else ascii(name)[1:-1]


def usual_settings(options: dict[str, Any], layout: str) -> str:
    """The data set's usual augmentation, where it differs from the default of prepared files."""
    from ltat.data import find_spec

    source, target = find_spec(options["named"] or options["dataset"]), find_spec(layout)
    usual = {"aug.pad": (source.pad, target.pad), "aug.flip": (source.flip, target.flip)}
    return "".join(f" --set {key}={json.dumps(own)}" for key, (own, other) in usual.items() if own != other)
