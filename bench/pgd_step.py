"""One PGD step: eager PyTorch, torch.compile and the native operator. Run: python -m bench.pgd_step.

`eager` is the step as training scripts write it, `twin` our specification, both in place on the same tensors; `compile`
runs `eager`, which compiled is the quicker of the two, and the twin only in l2, where there is no other. `copy` and
`stream` measure the memory: one tensor copied, and the plain sum x' + a g x, which reads and writes what the step
does. On CUDA `… graph` is the replay of a captured step.
"""

import click
import torch

from bench._harness import Run, append, bench_options, best_compiled, compare_operations, graphed, tried
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


def twin(x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor, norm: str) -> torch.Tensor:
    return x_adv.copy_(pgd_step_twin(x_adv, grad, x, norm=norm, **SETTINGS))


def bench_case(shape: tuple[int, ...], dtype: torch.dtype, norm: str, device: torch.device, rounds: int) -> None:
    x_adv, grad, x = make_inputs(shape, dtype, device)

    def compiled(compile) -> Run:
        if norm == "linf":
            step = compile(eager)
            return lambda: step(x_adv, grad, x)
        step = compile(twin)
        return lambda: step(x_adv, grad, x, norm)

    candidates: dict[str, Run] = {
        "twin": lambda: twin(x_adv, grad, x, norm),
        "native": lambda: pgd_step(x_adv, grad, x, norm=norm, inplace=True, **SETTINGS),
        "copy": lambda: x_adv.copy_(x),
    }
    candidates |= tried("compile", lambda: best_compiled(compiled, device, comparison=compare_operations))
    traffic = {"copy": 2 * x.nbytes}
    if norm == "linf":  # in l2 the norm is a pass more
        candidates = {"eager": lambda: eager(x_adv, grad, x)} | candidates
        traffic |= dict.fromkeys(("native", "native graph", "compile"), 3 * x.nbytes + grad.nbytes)
    if dtype == torch.float32:
        # The step's own traffic, three tensors read and one of them written, with next to no arithmetic: its floor.
        candidates["stream"] = lambda: x_adv.addcmul_(grad, x, value=1e-9)
        traffic["stream"] = 4 * x.nbytes
    if device.type == "cuda":
        candidates |= tried("twin graph", lambda: graphed(candidates["twin"]))
        candidates["native graph"] = graphed(candidates["native"])
    case = f"{'x'.join(map(str, shape))} {norm} {str(dtype).removeprefix('torch.')} in place"
    append("pgd_step", case, device, compare_operations(candidates, device, rounds), traffic)


@click.command()
@bench_options(threads=1, keep_memory=True)
def main(device: torch.device, rounds: int) -> None:
    """One PGD step, in place."""
    shapes = [*SHAPES, LARGE] if device.type == "cuda" else SHAPES
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            bench_case(shape, dtype, "linf", device, rounds)
    bench_case(SHAPES[0], torch.float32, "l2", device, rounds)


if __name__ == "__main__":
    main()
