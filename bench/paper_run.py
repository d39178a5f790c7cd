"""The main method as published: CIFAR-10-LT of ratio 50, ResNet-18, in bf16. Run: python -m bench.paper_run OUT.

Teacher and student of the recipe with attack and update as CUDA graphs; what differs from it is that only the epochs of
the lower learning rates compete for the best checkpoint, and that AutoAttack, which takes minutes, is not run. Without
``--data-dir`` the images are random, as many: throughput is the same, accuracy means nothing. OUT is the run folder
itself: what is cut off goes on from its last whole epoch when this is called again. The seconds of all epochs together
are a row of bench/results/end_to_end.csv.
"""

from pathlib import Path

import click
import torch

from bench._gpu_results import read_epochs
from bench._harness import Spread, append
from bench._pack import unpack
from bench._parts import PACKED
from bench._training import COUNTS, FASTEST, GRAPH, random_split
from ltat.config import RunConfig, load_config
from ltat.data.npz import write_npz
from ltat.files import appearing_together
from ltat.methods import find_method
from ltat.training import train
from ltat.training.run_folder import REMAINS, STUDENT_FILES, TEACHER_FILES

RECIPE = "ltat-sd/c10-ir50-rn18/self-distill"
TEST_IMAGES = 100  # of every class


def npz_folder(given: Path | None, beside: Path) -> Path:
    """The images as an npz folder: the given one, or one in ``beside``, where packed or random ones are written."""
    if given is not None and not (given / PACKED["train"]).exists():
        return given
    folder = beside / ("random-images" if given is None else "images")
    if not (folder / "train.npz").exists():
        if given is None:
            write_random_data(folder, COUNTS)
        else:
            unpack(given, folder)
    return folder


def write_random_data(folder: Path, counts: tuple[int, ...]) -> None:
    """Random images in the npz layout."""
    names = tuple(map(str, range(len(counts))))
    with appearing_together(folder) as made:
        write_npz(random_split(counts), made / "train.npz", names)
        write_npz(random_split((TEST_IMAGES,) * len(counts)), made / "test.npz", names)


def settings(data_dir: Path, device: str, epochs: int | None) -> list[str]:
    """What is set over the recipe: the data given, how it runs, and with ``epochs`` a training that is shortened."""
    given = ["data.name=npz", "data.imbalance_ratio=natural", f"data.dir={data_dir}", "aug.pad=4", "aug.flip=true"]
    given += ["train.precision=bf16", f"train.device={device}", 'eval.attacks=["clean", "pgd20"]']
    given += [f"train.graph={'false' if device == 'cpu' else 'true'}"]  # a CPU has no graphs
    if epochs is None:
        return [*given, "select.from=75"]  # the rate drops then; every epoch before would cost as much again
    return [*given, f"train.epochs={epochs}", "teacher.epochs=1", "select.set=none", "eval.n_examples=500"]


def forget_without_state(out: Path) -> None:
    """Let a run begin anew that was brought here without its large files, so that it has no state to go on from."""
    if not any((out / files.state).exists() for files in (TEACHER_FILES, STUDENT_FILES)):
        for name in ("config.toml", "indices.json", *REMAINS):
            (out / name).unlink(missing_ok=True)


def write_row(out: Path, config: RunConfig) -> None:
    """The seconds of all epochs, in a case that is named after their number."""
    epochs = read_epochs(out)
    teacher = sum(row["stage"] == "teacher" for row in epochs)
    case = f"CIFAR-10-LT, {config.model.name}, {teacher} + {len(epochs) - teacher} epochs of self-distill"
    total = Spread.of([sum(row["seconds"] for row in epochs)])
    candidate = GRAPH if config.train.graph else FASTEST
    append("end_to_end", case, torch.device(config.train.device), {candidate: total})


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path, exists=True), help="A folder of images, plain or packed.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--epochs", type=int, help="Shorten it to one epoch of the teacher and so many of the student.")
@click.option("--set", "assignments", multiple=True, help="A setting of the run; repeatable.")
def main(out: Path, data_dir: Path | None, device: str, epochs: int | None, assignments: tuple[str, ...]) -> None:
    """Train, with OUT as the folder of the run, or go on with the run that stands there."""
    images = npz_folder(data_dir, out.absolute().parent)
    given = [*settings(images.absolute(), device, epochs), *assignments]
    asked = load_config(lambda method: find_method(method).Config, recipe=RECIPE, assignments=given)
    forget_without_state(out)
    train(asked, out, resume=True)
    for row in read_epochs(out):
        print(f"{row['stage']} epoch {row['epoch']}: {row['seconds']:.2f} s, {row['images_per_s']:.0f} images/s")
    write_row(out, asked.config)


if __name__ == "__main__":
    main()
