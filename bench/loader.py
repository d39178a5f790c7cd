"""An epoch of batches, flip and pad-crop, from every loader and from what people use. Run: python -m bench.loader.

Rows in images/s. Every candidate gives float32 batches of 128 in [0, 1] of the same
10,000 random images; FFCV's files are raw. `torch` reads in the main process, `torch-workers` in as many workers as
there are threads. `ffcv-stock` is FFCV with its own RandomTranslate and RandomHorizontalFlip, `dataloader-v2`
torch's DataLoader with torchvision v2 on uint8 tensors. Threads are torch's and FFCV's, and
DataLoader's workers (with one thread it works in the main process).
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bench._harness import Spread, bench_options, compare, write_rows
from ltat.data import Augment, Loader, ResidentLoader, ShufflePlan, Split, TorchLoader
from ltat.data.beton import load_beton, write_beton
from ltat.data.loaders.ffcv import FfcvLoader

IMAGES, BATCH, PAD = 10_000, 128, 4
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


def make_split(size: int, images: int = IMAGES) -> Split:
    """Random images: raw files do not depend on what they show."""
    random = np.random.default_rng(0)
    labels = np.sort(random.integers(0, 10, images))
    return Split(random.integers(0, 256, (images, size, size, 3), dtype=np.uint8), labels, 10, np.arange(images))


def write_set(split: Split, folder: Path) -> None:
    for part in ("train", "test") if find_spec("ffcv") is not None else ():
        write_beton(split, folder / f"{part}.beton", tuple(map(str, range(10))), name="bench")


def exhaust(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def epochs_of(loader: Loader) -> Callable[[], None]:
    numbers = iter(range(1_000_000))
    return lambda: exhaust(loader.epoch(next(numbers)))


def stock_ffcv(file: Path, threads: int, device: torch.device) -> Callable[[], None]:
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
            images.to(device).float().div_(255)

    return epoch


def baseline(split: Split, workers: int, device: torch.device) -> Callable[[], None]:
    batches = DataLoader(
        Tensors(split), batch_size=BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: exhaust((images.to(device), labels.to(device)) for images, labels in batches)


def candidates(split: Split, folder: Path, threads: int, device: torch.device) -> dict[str, Callable[[], object]]:
    settings = {"batch_size": BATCH, "augment": Augment(PAD, True), "device": device}
    plan = ShufflePlan(IMAGES, 0)
    workers = 0 if threads == 1 else threads
    ours = {
        "resident": ResidentLoader(split, plan, **settings),
        "torch": TorchLoader(split, plan, workers=0, **settings),
        "torch-workers": TorchLoader(split, plan, workers=threads, **settings),
    }
    streamed = {}
    if find_spec("ffcv") is not None:
        ours["ffcv"] = FfcvLoader(load_beton(folder).train, plan, workers=threads, **settings)
        streamed["ffcv-stock"] = stock_ffcv(folder / "train.beton", threads, device)
    return (
        {name: epochs_of(loader) for name, loader in ours.items()}
        | streamed
        | {BASELINE: baseline(split, workers, device)}
    )


def bench_case(size: int, threads: int, device: torch.device, rounds: int) -> None:
    split = make_split(size)
    with tempfile.TemporaryDirectory() as name:
        write_set(split, Path(name))
        torch.set_num_threads(threads)
        seconds = compare(candidates(split, Path(name), threads, device), device, rounds, target=0.0, warm_up=1)
    rates = {candidate: Spread(IMAGES / s.median, IMAGES / s.p80, IMAGES / s.p20) for candidate, s in seconds.items()}
    write_rows("loader", f"{size} px", device, "images/s", rates)


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
        write_set(split, Path(name))
        command = [sys.executable, "-c", FIRST_BATCH, name]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    seconds = sorted(float(run.stdout) for run in runs)
    print(f"first batch of ffcv after import: {seconds[1]:.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f})")


@click.command()
@bench_options(threads=2, rounds=5)
def main(device: torch.device, rounds: int) -> None:
    """An epoch of batches from every loader, with one thread and with as many as asked for."""
    asked = torch.get_num_threads()
    for size in (32, 64):
        for threads in sorted({1, asked}):
            bench_case(size, threads, device, rounds)
    if find_spec("ffcv") is not None:
        first_batch()


if __name__ == "__main__":
    main()
