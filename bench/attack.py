"""A whole PGD attack on ResNet-18, beside what people use. Run: python -m bench.attack.

`plain` is the attack of bench/plain_at_bsl.py on the network as it is, `compile` the same on torch.compile(network),
`plain graph` its replay as one CUDA graph. `ltat fp32` is the exact reference, the others are ltat's settings, with
`ltat bf16 graph` as one CUDA graph. As in a training, ltat's network is wrapped once: its working copy is kept from
attack to attack, and every attack brings it up to date. On a CPU, where a step costs seconds, everyone attacks a
quarter of the batch with two steps, warmed up by one call, and only `plain` and ltat's fastest the whole of it with
ten. torchattacks and foolbox take part where they are installed (`pip install -e .[bench]`).
"""

import copy
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import click
import torch
from torch import Tensor, nn

from bench._harness import Run, append, bench_options, best_compiled, compare, graphed, network_cases, tried
from bench._training import FASTEST, GRAPH
from bench.plain_at_bsl import Recipe, pgd_attack
from ltat.attacks import ThreatModel, pgd
from ltat.engine.graphs import Graphs
from ltat.engine.network import StepNetwork
from ltat.models import build_model

Attack = Callable[[nn.Module, Tensor, Tensor, Recipe], Tensor]
SETTINGS = {
    "ltat fp32": {},
    "ltat fp32 folded": {"fold": True},
    "ltat bf16": {"precision": "bf16"},
}
NETWORK_MODES = ("default", "reduce-overhead")  # the tuned modes search for minutes on a whole network


def ltat_run(
    model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, *, graphs: Graphs | None = None, **settings: object
) -> Run:
    """ltat by its settings, in the memory layout and with the wrapper in which its trainer calls the attack."""
    model, x = (thing.to(memory_format=torch.channels_last) for thing in (model, x))
    network = StepNetwork(model, settings.get("precision", "fp32"), graphs=graphs)
    given = {"threat": ThreatModel(eps=recipe.eps), "steps": recipe.steps, "step_size": recipe.step, **settings}
    return lambda: pgd(network, x, y, validate=False, **given)


def ltat_runs(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe) -> dict[str, Run]:
    """All settings but the graph."""
    return {name: ltat_run(model, x, y, recipe, **settings) for name, settings in SETTINGS.items()}


def torchattacks_attack(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe) -> Tensor:
    import torchattacks

    return torchattacks.PGD(model, eps=recipe.eps, alpha=recipe.step, steps=recipe.steps)(x, y)


def foolbox_attack(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe) -> Tensor:
    import foolbox

    network = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=recipe.step, steps=recipe.steps)
    return attack(network, x, y, epsilons=recipe.eps)[1]


LIBRARIES: dict[str, Attack] = {"torchattacks": torchattacks_attack, "foolbox": foolbox_attack}


def other_runs(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe) -> dict[str, Run]:
    """torch.compile, a CUDA graph, and the libraries that are installed."""

    def compiled(compile) -> Run:
        network = compile(model)
        return lambda: pgd_attack(network, x, y, recipe)

    runs = tried("compile", lambda: best_compiled(compiled, x.device, NETWORK_MODES))
    if x.device.type == "cuda":
        runs |= tried("plain graph", lambda: graphed(lambda: pgd_attack(model, x, y, recipe)))
    for name, attack in LIBRARIES.items():
        if find_spec(name) is None:
            print(f"{name} is not installed and left out; install it: pip install {name}", flush=True)
            continue
        runs |= tried(name, lambda attack=attack: lambda: attack(model, x, y, recipe))
    return runs


@click.command()
@bench_options(rounds=3)
@click.option("--model", "name", default="resnet18", show_default=True)
@click.option("--batch", type=int, help="Images; 64 on a CPU, 128 and 32 on a GPU by default.")
def main(device: torch.device, rounds: int, name: str, batch: int | None) -> None:
    """A whole PGD attack, beside torchattacks and foolbox."""
    model = build_model(name, num_classes=10).to(device).eval()
    same = copy.deepcopy(model)  # ltat's trainer keeps it in another memory layout
    for images, steps, everyone, warm_up in network_cases(device, batch):
        x, y = torch.rand(images, 3, 32, 32, device=device), torch.randint(10, (images,), device=device)
        recipe = Recipe(steps=steps)
        runs: dict[str, Run] = {"plain": lambda given=(x, y, recipe): pgd_attack(model, *given)}
        ours = ltat_runs(same, x, y, recipe)
        if device.type == "cuda":
            graphed_run = partial(ltat_run, same, x, y, recipe, graphs=Graphs(), **SETTINGS[FASTEST])
            ours |= tried(GRAPH, graphed_run)
        runs |= {**ours, **other_runs(model, x, y, recipe)} if everyone else {FASTEST: ours[FASTEST]}
        seconds = compare(runs, device, rounds, target=0.0, warm_up=warm_up)
        append("attack", f"{name} {images}x3x32x32 {steps} steps", device, seconds)


if __name__ == "__main__":
    main()
