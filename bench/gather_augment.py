"""A batch of a loader: picked, shifted, mirrored, scaled to [0, 1]. Run: python -m bench.gather_augment.

`twin` is our specification, `gather` the vectorised crop that fast scripts use: the set padded once, then one
advanced index per batch, and `compile` the same compiled, which is quicker than the twin compiled. `native gather`,
`index_select` and `advanced` only pick, `copy` is the floor. Whole epochs of 16 batches are measured beside a
DataLoader with torchvision's v2 transforms and a worker per thread.
"""

from collections.abc import Callable

import click
import torch

from bench._harness import Run, append, bench_options, best_compiled, compare, compare_operations, graphed, tried
from bench.loader import baseline, make_split
from ltat.ops import gather_augment, gather_augment_twin

IMAGES = 10_000
BATCHES = 50
EPOCH = 16
PAD = 4
SHAPES = [(128, 32, 32, 3), (128, 64, 64, 3)]
LARGE = [(512, 32, 32, 3), (512, 64, 64, 3)]
Draw = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def draw(batch: int, device: torch.device) -> Draw:
    """Positions, shifts and mirrors of one batch."""
    positions = torch.randint(IMAGES, (batch,), device=device)
    shift = torch.randint(-PAD, PAD + 1, (batch, 2), device=device)
    return positions, shift, torch.rand(batch, device=device) < 0.5


def in_turn(draws: list[Draw], run: Callable[[Draw], object]) -> Callable[[], object]:
    """Another batch at every call: the same images again would lie in the cache already."""
    calls = 0

    def call() -> object:
        nonlocal calls
        calls += 1
        return run(draws[calls % len(draws)])

    return call


def gather(padded: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Zero padding, crop and mirror by one advanced index into the padded set [N, H + 2 pad, W + 2 pad, C]."""
    positions, shift, mirrored = draw
    size = padded.shape[1] - 2 * PAD
    ahead = torch.arange(size, device=padded.device)
    rows = PAD + shift[:, :1] + ahead
    columns = PAD + shift[:, 1:] + torch.where(mirrored[:, None], ahead.flip(0), ahead)
    found = padded[positions[:, None, None], rows[:, :, None], columns[:, None, :]]
    return found.permute(0, 3, 1, 2).float().div_(255)


def bench_case(shape: tuple[int, ...], device: torch.device, rounds: int) -> None:
    images = torch.randint(256, (IMAGES, *shape[1:]), dtype=torch.uint8, device=device)
    padded = torch.nn.functional.pad(images, (0, 0, PAD, PAD, PAD, PAD))
    draws = [draw(shape[0], device) for _ in range(BATCHES)]
    floats = torch.rand(shape, device=device)

    def compiled(compile) -> Run:
        picked = compile(gather)
        return in_turn(draws, lambda d: picked(padded, d))

    runs: dict[str, Callable[[Draw], object]] = {
        "twin": lambda d: gather_augment_twin(images, d[0], shift=d[1], mirrored=d[2]),
        "gather": lambda d: gather(padded, d),
        "native": lambda d: gather_augment(images, d[0], shift=d[1], mirrored=d[2]),
        "native gather": lambda d: gather_augment(images, d[0]),
        "index_select": lambda d: images.index_select(0, d[0]).float().div(255),
        "advanced": lambda d: images[d[0]].float().div(255),
        "copy": lambda d: floats.clone(),
    }
    candidates = {name: in_turn(draws, run) for name, run in runs.items()}
    candidates |= tried("compile", lambda: best_compiled(compiled, device, comparison=compare_operations))
    if device.type == "cuda":
        first = draws[0]
        candidates |= tried("twin graph", lambda: graphed(lambda: runs["twin"](first)))
        candidates["native graph"] = graphed(lambda: runs["native"](first))
    bytes_moved = floats.nbytes // 4 + floats.nbytes
    case = f"{'x'.join(map(str, shape))} of {IMAGES} pad {PAD} flip"
    traffic = {"copy": 2 * floats.nbytes, "native": bytes_moved, "native gather": bytes_moved}
    append("gather_augment", case, device, compare_operations(candidates, device, rounds), traffic)


def bench_epoch(size: int, device: torch.device, rounds: int) -> None:
    """An epoch of ``EPOCH`` batches of 128; the DataLoader's workers live on from epoch to epoch."""
    split = make_split(size, 128 * EPOCH)
    images = split.images_on(device)
    padded = torch.nn.functional.pad(images, (0, 0, PAD, PAD, PAD, PAD))
    order = torch.randperm(len(images), device=device).split(128)
    draws = [(positions, *draw(128, device)[1:]) for positions in order]
    threads = torch.get_num_threads()
    candidates: dict[str, Run] = {
        "dataloader-v2": baseline(split, 0 if threads == 1 else threads, device),
        "gather": lambda: [gather(padded, d) for d in draws],
        "native": lambda: [gather_augment(images, d[0], shift=d[1], mirrored=d[2]) for d in draws],
    }
    case = f"{EPOCH} batches of 128x{size}x{size}x3"
    append("gather_augment", case, device, compare(candidates, device, min(rounds, 9), target=0.0, warm_up=2))


@click.command()
@bench_options(threads=2, keep_memory=True)
def main(device: torch.device, rounds: int) -> None:
    """A batch of a loader: picked, cropped, mirrored, scaled."""
    for shape in [*SHAPES, *LARGE] if device.type == "cuda" else SHAPES:
        bench_case(shape, device, rounds)
    bench_epoch(32, device, rounds)


if __name__ == "__main__":
    main()
