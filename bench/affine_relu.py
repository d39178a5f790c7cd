"""Batch norm in evaluation mode with its ReLU: eager PyTorch, torch.compile and the native operator. Run: python -m
bench.affine_relu.

`eager` is the batch norm and the ReLU as a network calls them, and `compile` the same compiled; `native` is one pass.
`copy` copies the tensor: it measures the memory. On CUDA `… graph` is the replay of a captured call.
"""

import click
import torch

from bench._harness import Run, append, bench_options, best_compiled, compare_operations, graphed, tried
from ltat.ops import affine_relu

SHAPE = (128, 64, 32, 32)


def make_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[torch.nn.Module, torch.Tensor]:
    """A batch norm in evaluation mode, and what it gets, channels last."""
    norm = torch.nn.BatchNorm2d(shape[1], device=device).eval().requires_grad_(False)
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        values.uniform_(0.5, 2.0)
    return norm, torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last)


def eager(norm: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The two passes of a network; the batch norm's parameters stay float32, as under autocast."""
    return norm(x).relu_()


def bench_case(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, rounds: int) -> None:
    norm, x = make_inputs(shape, dtype, device)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    shift, spare = norm.bias - norm.running_mean * scale, torch.empty_like(x)

    def compiled(compile) -> Run:
        run = compile(eager)
        return lambda: run(norm, x)

    candidates: dict[str, Run] = {
        "eager": lambda: eager(norm, x),
        "native": lambda: affine_relu(x, scale, shift),
        "copy": lambda: spare.copy_(x),
    }
    candidates |= tried("compile", lambda: best_compiled(compiled, device, comparison=compare_operations))
    if device.type == "cuda":
        candidates["native graph"] = graphed(candidates["native"])
    traffic = dict.fromkeys(("copy", "native", "native graph", "compile"), 2 * x.nbytes)
    case = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')} channels_last"
    append("affine_relu", case, device, compare_operations(candidates, device, rounds), traffic)


@click.command()
@bench_options(threads=1, keep_memory=True)
def main(device: torch.device, rounds: int) -> None:
    """Batch norm in evaluation mode with its ReLU."""
    for dtype in (torch.bfloat16, torch.float32):
        bench_case(SHAPE, dtype, device, rounds)


if __name__ == "__main__":
    main()
