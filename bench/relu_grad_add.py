"""The backward pass of a ReLU that two read: eager PyTorch, torch.compile and the native operator. Run: python -m
bench.relu_grad_add.

`eager` is what autograd runs, a sum and then the mask, and `compile` the same compiled; `native` is one pass. `copy`
copies one tensor, and `stream` reads and writes what the pass does with next to no arithmetic: both measure the memory.
On CUDA `… graph` is the replay of a captured call.
"""

import click
import torch

from bench._harness import Run, append, bench_options, best_compiled, compare_operations, graphed, tried
from ltat.ops import relu_grad_add

SHAPE = (128, 64, 32, 32)


def make_inputs(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The output of a ReLU and the gradients of the two that read it, channels last."""
    values = [torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last) for _ in range(3)]
    return values[0].relu(), *values[1:]


def eager(output: torch.Tensor, grad: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The two passes that autograd runs."""
    return torch.ops.aten.threshold_backward(grad + other, output, 0)


def bench_case(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, rounds: int) -> None:
    output, grad, other = make_inputs(shape, dtype, device)
    spare = torch.empty_like(output)

    def compiled(compile) -> Run:
        run = compile(eager)
        return lambda: run(output, grad, other)

    candidates: dict[str, Run] = {
        "eager": lambda: eager(output, grad, other),
        "native": lambda: relu_grad_add(output, grad, other),
        "copy": lambda: spare.copy_(output),
        "stream": lambda: torch.addcmul(output, grad, other, value=1e-9, out=spare),
    }
    candidates |= tried("compile", lambda: best_compiled(compiled, device, comparison=compare_operations))
    if device.type == "cuda":
        candidates["native graph"] = graphed(candidates["native"])
    traffic = {"copy": 2 * output.nbytes}
    traffic |= dict.fromkeys(("native", "native graph", "compile", "stream"), 4 * output.nbytes)
    case = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')} channels_last"
    append("relu_grad_add", case, device, compare_operations(candidates, device, rounds), traffic)


@click.command()
@bench_options(threads=1, keep_memory=True)
def main(device: torch.device, rounds: int) -> None:
    """The backward pass of a ReLU that two read."""
    for dtype in (torch.bfloat16, torch.float32):
        bench_case(SHAPE, dtype, device, rounds)


if __name__ == "__main__":
    main()
