"""An epoch of batches, flip and pad-crop, from every loader and from what people use. Run: python -m bench.loader.

Rows in bench/results/loader.csv, in images/s. Every candidate gives float32 batches of 128 in [0, 1] of the same
10,000 random images; FFCV's files are raw. `torch` reads in the main process, `torch-workers` in as many workers as
there are threads. `ffcv-stock` is FFCV with its own RandomTranslate and RandomHorizontalFlip, `dataloader-v2`
torch's DataLoader with torchvision v2 on uint8 tensors. Threads are torch's and FFCV's, and
DataLoader's workers (with one thread it works in the main process).
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bench._harness import common_cells, compare, write_rows
from ltat.data import Augment, Loader, ResidentLoader, ShufflePlan, Split, TorchLoader
from ltat.data.beton import load_beton, write_beton
from ltat.data.loaders.ffcv import FfcvLoader

IMAGES, BATCH, PAD = 10_000, 128, 4
ROUNDS = 9
COLUMNS = ("images_per_s", "p20", "p80", "ratio")
BASELINE = "dataloader-v2"


class Tensors(Dataset[tuple[torch.Tensor, int]]):
    """What a script for CIFAR has: an image, transformed, and its label."""

    def __init__(self, split: Split) -> None:
        from torchvision.transforms import v2

        self.images = torch.from_numpy(split.images).permute(0, 3, 1, 2).contiguous()
        self.labels = split.labels
        size = split.images.shape[1]
        crop = [v2.RandomCrop(size, padding=PAD), v2.RandomHorizontalFlip()]
        self.transform = v2.Compose([*crop, v2.ToDtype(torch.float32, scale=True)])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, k: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[k]), int(self.labels[k])


def make_split(size: int) -> Split:
    """Random images: raw files do not depend on what they show."""
    random = np.random.default_rng(0)
    labels = np.sort(random.integers(0, 10, IMAGES))
    return Split(random.integers(0, 256, (IMAGES, size, size, 3), dtype=np.uint8), labels, 10, np.arange(IMAGES))


def exhaust(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def epochs_of(loader: Loader) -> Callable[[], None]:
    numbers = iter(range(1_000_000))
    return lambda: exhaust(loader.epoch(next(numbers)))


def stock_ffcv(file: Path, threads: int) -> Callable[[], None]:
    from ffcv.fields.decoders import SimpleRGBImageDecoder
    from ffcv.loader import Loader as StockLoader
    from ffcv.loader import OrderOption
    from ffcv.transforms import RandomHorizontalFlip, RandomTranslate, ToTensor, ToTorchImage

    pipeline = [SimpleRGBImageDecoder(), RandomHorizontalFlip(), RandomTranslate(padding=PAD)]
    loader = StockLoader(
        str(file),
        batch_size=BATCH,
        num_workers=threads,
        order=OrderOption.RANDOM,
        drop_last=False,
        pipelines={"image": [*pipeline, ToTensor(), ToTorchImage()]},
    )

    def epoch() -> None:
        for images, *_ in loader:
            images.float().div_(255)

    return epoch


def candidates(split: Split, folder: Path, threads: int) -> dict[str, Callable[[], object]]:
    streamed = load_beton(folder).train
    settings = {"batch_size": BATCH, "augment": Augment(PAD, True)}
    plan = ShufflePlan(IMAGES, 0)
    workers = 0 if threads == 1 else threads
    stock = stock_ffcv(folder / "train.beton", threads)
    baseline = DataLoader(Tensors(split), batch_size=BATCH, shuffle=True, num_workers=workers)
    return {
        "resident": epochs_of(ResidentLoader(split, plan, **settings)),
        "ffcv": epochs_of(FfcvLoader(streamed, plan, workers=threads, **settings)),
        "ffcv-stock": stock,
        "torch": epochs_of(TorchLoader(split, plan, workers=0, **settings)),
        "torch-workers": epochs_of(TorchLoader(split, plan, workers=threads, **settings)),
        BASELINE: lambda: exhaust(baseline),
    }


def bench_case(size: int, threads: int) -> None:
    device = torch.device("cpu")
    split = make_split(size)
    with tempfile.TemporaryDirectory() as name:
        names = tuple(map(str, range(10)))
        for part in ("train", "test"):
            write_beton(split, Path(name) / f"{part}.beton", names, name="bench")
        torch.set_num_threads(threads)
        seconds = compare(candidates(split, Path(name), threads), device, rounds=ROUNDS, target=0.0, warm_up=2)
    rates = {candidate: [IMAGES / s for s in (median, p80, p20)] for candidate, (median, p20, p80) in seconds.items()}
    rows = [[*(f"{rate:.0f}" for rate in own), f"{own[0] / rates[BASELINE][0]:.2f}"] for own in rates.values()]
    case = f"{size} px"
    write_rows("loader", COLUMNS, [[*common_cells(device), case, c, *row] for c, row in zip(rates, rows, strict=True)])
    shown = "  ".join(f"{c} {own[0] / 1e3:.0f}k/s" for c, own in rates.items())
    print(f"{case}, {threads} threads: {shown}", flush=True)


FIRST_BATCH = """
import sys, time
import ffcv, numpy
from pathlib import Path
from ltat.data import Augment, ShufflePlan
from ltat.data.beton import load_beton
from ltat.data.loaders.ffcv import FfcvLoader
split = load_beton(Path(sys.argv[1])).train
begin = time.perf_counter()
loader = FfcvLoader(split, ShufflePlan(len(split), 0), batch_size=128, augment=Augment(4, True))
next(loader.epoch(1))
print(time.perf_counter() - begin)
"""


def first_batch() -> None:
    """Seconds from FFCV's import to the first batch, in a fresh process each time."""
    with tempfile.TemporaryDirectory() as name:
        split = make_split(32)
        for part in ("train", "test"):
            write_beton(split, Path(name) / f"{part}.beton", tuple(map(str, range(10))), name="bench")
        command = [sys.executable, "-c", FIRST_BATCH, name]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(5)]
    seconds = sorted(float(run.stdout) for run in runs)
    print(f"first batch of ffcv after import: {seconds[2]:.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f})")


@click.command()
@click.option("--first", is_flag=True, help="Measure only the time to FFCV's first batch.")
def main(first: bool) -> None:
    """Append the medians to bench/results/loader.csv."""
    if not first:
        for size in (32, 64):
            for threads in (1, 2):
                bench_case(size, threads)
    first_batch()


if __name__ == "__main__":
    main()
