"""Both stages of the main method for a few epochs, as `ltat train` runs them. Run: python -m bench.short_training OUT.

Without ``--data-dir`` the images are random, as many as CIFAR-10-LT of ratio 50 has: throughput is the same, accuracy
means nothing. OUT is the run folder itself: what is cut off has left the epochs that it had done.
"""

import json
import tempfile
from pathlib import Path

import click

from bench._training import COUNTS, random_split
from ltat.config import load_config
from ltat.data.npz import write_npz
from ltat.methods import find_method
from ltat.training import train

TEST_IMAGES = 100  # of every class


def write_random_data(folder: Path, counts: tuple[int, ...]) -> Path:
    """Random images in the npz layout."""
    folder.mkdir()
    names = tuple(map(str, range(len(counts))))
    write_npz(random_split(counts), folder / "train.npz", names)
    write_npz(random_split((TEST_IMAGES,) * len(counts)), folder / "test.npz", names)
    return folder


def settings(data_dir: Path, device: str, epochs: int) -> list[str]:
    """The published settings on the data given, shortened."""
    fixed = ["method=self-distill", "data.name=npz", "data.imbalance_ratio=natural", "train.precision=bf16"]
    fixed += ["aug.pad=4", "aug.flip=true", "select.set=none", 'eval.attacks=["clean", "pgd20"]', "eval.n_examples=500"]
    fixed += [f"train.graph={'false' if device == 'cpu' else 'true'}"]  # a CPU has no graphs
    return [*fixed, f"data.dir={data_dir}", f"train.device={device}", f"train.epochs={epochs}", "teacher.epochs=1"]


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path, exists=True), help="A folder with train.npz and test.npz.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--epochs", default=4, show_default=True, help="Epochs of the student.")
@click.option("--set", "assignments", multiple=True, help="A setting of the run; repeatable.")
def main(out: Path, data_dir: Path | None, device: str, epochs: int, assignments: tuple[str, ...]) -> None:
    """Train, with OUT as the folder of the run."""
    with tempfile.TemporaryDirectory() as name:
        data = data_dir or write_random_data(Path(name) / "data", COUNTS)
        given = [*settings(data.absolute(), device, epochs), *assignments]
        train(load_config(lambda method: find_method(method).Config, assignments=given), out)
    for line in (out / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        print(f"{row['stage']} epoch {row['epoch']}: {row['seconds']:.2f} s, {row['images_per_s']:.0f} images/s")


if __name__ == "__main__":
    main()
