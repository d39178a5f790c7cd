"""One PGD step: eager PyTorch, torch.compile and the native operator. Run: python -m bench.pgd_step."""

import click
import torch

from bench._harness import append, compare
from ltat.ops import pgd_step, pgd_step_twin

SHAPES = [(128, 3, 32, 32), (256, 3, 64, 64)]
LARGE = (256, 3, 224, 224)
SETTINGS = {"eps": 8 / 255, "step": 2 / 255}


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Random images and gradients; zeros would run faster than anything real."""
    x = torch.rand(shape, device=device)
    return x + 0.01 * torch.randn_like(x), torch.randn(shape, device=device).to(dtype), x


def eager(x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The step as training scripts write it."""
    moved = x_adv + SETTINGS["step"] * grad.float().sign()
    moved = torch.min(torch.max(moved, x - SETTINGS["eps"]), x + SETTINGS["eps"])
    return x_adv.copy_(moved.clamp_(0, 1))


def bench_case(shape: tuple[int, ...], dtype: torch.dtype, norm: str, device: torch.device) -> None:
    x_adv, grad, x = make_inputs(shape, dtype, device)
    twin = torch.compile(lambda a, g, c: a.copy_(pgd_step_twin(a, g, c, norm=norm, **SETTINGS)))
    candidates = {
        "twin": lambda: x_adv.copy_(pgd_step_twin(x_adv, grad, x, norm=norm, **SETTINGS)),
        "compile": lambda: twin(x_adv, grad, x),
        "native": lambda: pgd_step(x_adv, grad, x, norm=norm, inplace=True, **SETTINGS),
        "copy": lambda: x_adv.copy_(x),
    }
    if norm == "linf":
        candidates = {"eager": lambda: eager(x_adv, grad, x)} | candidates
    if norm == "linf" and dtype == torch.float32:
        # The step's own traffic, three tensors read and one of them written, with next to no arithmetic: its floor.
        candidates["stream"] = lambda: x_adv.addcmul_(grad, x, value=0.0)
    case = f"{'x'.join(map(str, shape))} {norm} {str(dtype).removeprefix('torch.')} in place"
    append("pgd_step", case, device, compare(candidates, device))


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
def main(device: str, threads: int) -> None:
    """Append the medians to bench/results/pgd_step.csv."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shapes = [*SHAPES, LARGE] if device == "cuda" else SHAPES
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            bench_case(shape, dtype, "linf", torch.device(device))
    bench_case(SHAPES[0], torch.float32, "l2", torch.device(device))


if __name__ == "__main__":
    main()
