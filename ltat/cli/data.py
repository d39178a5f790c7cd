"""`ltat data info` and `ltat data prepare`."""

import io
from pathlib import Path
from typing import Any

import click
import numpy as np

from ltat.cli.options import dataset_options
from ltat.errors import LtatError
from ltat.files import atomic_write_all

BAR_WIDTH = 40
CLASSES_SHOWN = 40


@click.group("data")
def command() -> None:
    """Look at a data set, or write it in the npz layout."""


@command.command("info")
@dataset_options
@click.option("--subset-seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
def info(**options: Any) -> None:
    """Counts per class, imbalance ratio, the size of D_B and the index hash of a data set."""
    from ltat.data import balanced_indices, index_hash

    data = open_dataset(options)
    counts = data.train.counts
    click.echo(f"{data.name}: {len(data.train)} training and {len(data.test)} test images of shape {data.image_shape}")
    for name, n in list(zip(data.class_names, counts.tolist(), strict=True))[:CLASSES_SHOWN]:
        click.echo(f"  {name:>12} {n:6d} {'█' * max(1, round(BAR_WIDTH * n / counts.max()))}")
    if len(counts) > CLASSES_SHOWN:
        click.echo(f"  … and {len(counts) - CLASSES_SHOWN} classes more, down to {counts.min()} images")
    click.echo(f"imbalance ratio {counts.max() / counts.min():.4g}")
    click.echo(f"D_B holds {len(balanced_indices(data.train.labels, num_classes=data.num_classes))} images")
    click.echo(f"index hash {index_hash(data.train.indices)}")


@command.command("prepare")
@dataset_options
@click.option("--subset-seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The folder to write.")
def prepare(out: Path, **options: Any) -> None:
    """Write a data set, long-tailed or whole, as train.npz and test.npz, for --dataset npz."""
    data = open_dataset(options)
    files = {out / "test.npz": data.test, out / "train.npz": data.train}
    for path in files:
        if path.exists():
            raise LtatError(f"{path} exists already; remove it, or name another --out")
    atomic_write_all({path: npz_bytes(split, data.class_names) for path, split in files.items()})
    click.echo(f"{len(data.train)} training and {len(data.test)} test images -> {out}")


def open_dataset(options: dict[str, Any]) -> Any:
    """The data set of the options, at the literature's imbalance ratio where none is named."""
    from ltat.data import find_spec, load_dataset

    if options["dataset"] is None:
        raise LtatError("no data set is named; add --dataset, for example --dataset digits")
    ratio = options["imbalance_ratio"]
    return load_dataset(
        options["dataset"],
        options["data_dir"],
        imbalance_ratio=find_spec(options["dataset"]).default_ratio if ratio is None else ratio,
        subset_seed=options["subset_seed"],
        download=bool(options["download"]),
    )


def npz_bytes(split: Any, class_names: tuple[str, ...]) -> bytes:
    """Images, labels, source positions and class names as an npz file."""
    buffer = io.BytesIO()
    names = np.array(class_names)
    np.savez(buffer, images=split.images, labels=split.labels, index=split.indices, class_names=names)
    return buffer.getvalue()
