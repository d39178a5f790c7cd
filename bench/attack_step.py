"""One attack step on ResNet-18's working copy, beside its bare convolutions. Run: python -m bench.attack_step.

A step is the forward and the input gradient of the folded network. `convolutions` calls the convolutions alone, forward
with bias and input gradient, on tensors of their shapes: the limit of every engine on these libraries. `separate` runs
bias, residual sum, ReLU and the sums of gradients as operations beside the convolutions, `fused` is what ltat runs. On
CUDA each is the replay of a graph. The rows `operations` count what a step calls, and `element-wise MiB` what it reads
and writes outside of the convolutions. As for the single operations, glibc keeps what is freed. bf16 is left out on a
CPU without instructions for it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import click
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench._harness import Run, Spread, append, bench_options, compare, graphed, write_rows
from ltat.engine import working_copy
from ltat.engine.working_copy import WorkingCopy
from ltat.models import build_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def step_of(work: WorkingCopy, x: Tensor) -> Run:
    """Forward and input gradient."""

    def run() -> Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(work(leaf).logsumexp(1).sum(), leaf)[0]

    return run


@contextmanager
def separate_operations() -> Iterator[None]:
    """Working copies made in here run every operation by itself."""
    nothing = {"fuse_convolutions": lambda trunk: 0, "fuse_norms": lambda trunk: []}
    with mock.patch.multiple(working_copy, **nothing):
        yield


def convolutions_of(work: WorkingCopy, x: Tensor) -> Run:
    """Every convolution of the copy, forward and input gradient, on random tensors of its shapes."""
    calls: list[Callable[[], Any]] = []

    def note(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        image, gradient = torch.randn_like(inputs[0]), torch.randn_like(output)
        where = (None, conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups, (True, False, False))
        calls.append(lambda: conv(image))
        calls.append(lambda: torch.ops.aten.convolution_backward(gradient, image, conv.weight, *where))

    hooks = [m.register_forward_hook(note) for m in work.body.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        work(x)
    for hook in hooks:
        hook.remove()

    def run() -> None:
        with torch.no_grad():
            for call in calls:
                call()

    return run


class Traffic(TorchDispatchMode):
    """Counts operations, and the bytes that those other than convolutions read and write; views count for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns):
            return result
        self.operations += 1
        if "conv" not in func._schema.name:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.nbytes += sum(tensor.nbytes for tensor in tensors)
        return result


def count(candidates: dict[str, Run], case: str, device: torch.device) -> None:
    """Append how many operations a call takes, and the MiB that move beside the convolutions."""
    operations, mib = {}, {}
    for name, run in candidates.items():
        run()
        with Traffic() as traffic:
            run()
        operations[name], mib[name] = Spread(*[traffic.operations] * 3), Spread(*[traffic.nbytes / 2**20] * 3)
    write_rows("attack_step", f"{case} operations", device, "", operations)
    write_rows("attack_step", f"{case} element-wise", device, "MiB", mib)


def bench_case(images: int, precision: str, device: torch.device, rounds: int) -> None:
    model = build_model("resnet18", num_classes=10).to(device, memory_format=torch.channels_last).eval()
    model.requires_grad_(False)
    x = torch.rand(images, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    with separate_operations():
        separate = WorkingCopy(model, DTYPES[precision])
    steps = {"separate": step_of(separate, x), "fused": step_of(WorkingCopy(model, DTYPES[precision]), x)}
    case = f"resnet18 {images}x3x32x32 {precision}"
    count(steps, case, device)
    candidates = {"convolutions": convolutions_of(separate, x), **steps}
    if device.type == "cuda":
        candidates = {f"{name} graph": graphed(run) for name, run in candidates.items()}
    append("attack_step", case, device, compare(candidates, device, rounds, target=0.0, warm_up=2))


@click.command()
@bench_options(rounds=11, keep_memory=True)
@click.option("--batch", type=int, help="Images; 64 on a CPU and 128 on a GPU by default.")
def main(device: torch.device, rounds: int, batch: int | None) -> None:
    """One attack step on ResNet-18's working copy, beside its bare convolutions."""
    images = batch or (128 if device.type == "cuda" else 64)
    for precision in DTYPES:
        if precision == "bf16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            print("bf16: this CPU has no instructions for it", flush=True)
            continue
        bench_case(images, precision, device, rounds)


if __name__ == "__main__":
    main()
