"""A batch of a loader: eager PyTorch, torch.compile and the native operator. Run: python -m bench.gather_augment."""

from collections.abc import Callable

import click
import torch

from bench._harness import append, compare
from ltat.ops import gather_augment, gather_augment_twin

IMAGES = 10_000
BATCHES = 50
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


def bench_case(shape: tuple[int, ...], device: torch.device) -> None:
    images = torch.randint(256, (IMAGES, *shape[1:]), dtype=torch.uint8, device=device)
    draws = [draw(shape[0], device) for _ in range(BATCHES)]
    floats = torch.rand(shape, device=device)
    compiled = torch.compile(gather_augment_twin)
    runs: dict[str, Callable[[Draw], object]] = {
        "twin": lambda d: gather_augment_twin(images, d[0], shift=d[1], mirrored=d[2]),
        "compile": lambda d: compiled(images, d[0], shift=d[1], mirrored=d[2]),
        "native": lambda d: gather_augment(images, d[0], shift=d[1], mirrored=d[2]),
        "native gather": lambda d: gather_augment(images, d[0]),
        "index_select": lambda d: images.index_select(0, d[0]).float().div(255),
        "advanced": lambda d: images[d[0]].float().div(255),
        "copy": lambda d: floats.clone(),
    }
    case = f"{'x'.join(map(str, shape))} of {IMAGES} pad {PAD} flip"
    append("gather_augment", case, device, compare({name: in_turn(draws, run) for name, run in runs.items()}, device))


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
def main(device: str, threads: int) -> None:
    """Append the medians to bench/results/gather_augment.csv."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    for shape in [*SHAPES, *LARGE] if device == "cuda" else SHAPES:
        bench_case(shape, torch.device(device))


if __name__ == "__main__":
    main()
