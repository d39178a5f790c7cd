"""The K steps of an attack as one CUDA graph: what goes into it, and which attacks cannot.

Inputs, copied into the graph's buffers by every attack, are the start, the images and labels, the radii and steps per
image, and the tensors that the objective binds. The network is read where it stands: an optimiser writes into the same
tensors, and so does the refresh of a working copy, before the graph. If one has moved, the attack is captured anew.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from types import FunctionType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ltat.attacks.loss import ModelLoss, check_label
from ltat.attacks.objectives import Objective
from ltat.attacks.pgd import ascend
from ltat.attacks.starts import random_start
from ltat.attacks.threat import ThreatModel
from ltat.engine.network import StepNetwork
from ltat.engine.working_copy import WorkingCopy, altered
from ltat.seeding import Noise


class _Parts(NamedTuple):
    """An objective taken apart: the tensors it binds are inputs of the graph, all else belongs to the graph's key."""

    function: Callable[..., Tensor]
    tensors: dict[str, Tensor]
    modules: dict[str, nn.Module]
    others: dict[str, object]


def why_not_captured(network: StepNetwork, objective: Objective, *, mode: str = "eval", steps: int = 1) -> str | None:
    """Why this attack runs step by step, in words; ``None`` where one graph can hold it."""
    if network.graphs is None:
        return "no graph was asked for"
    if network.graphs.why_not is not None:
        return network.graphs.why_not
    if mode != "eval":
        return f"mode={mode} changes more than the images"
    if steps == 0:
        return "an attack of 0 steps has nothing to capture"
    return _why_network_not_captured(network) or _why_objective_not_captured(objective, network.model)


def captured_pgd(
    network: StepNetwork,
    loss: ModelLoss,
    x: Tensor,
    threat: ThreatModel,
    *,
    steps: int,
    step_size: float | Tensor,
    start: str,
    generator: Noise | None = None,
) -> Tensor:
    """:func:`ltat.attacks.pgd.projected_gradient_descent`, its K steps replayed by one of the graphs of ``network``.

    The start is drawn outside: a graph draws no random numbers. :func:`why_not_captured` must return None.
    """
    assert network.graphs is not None and network.num_classes is not None
    check_label(loss.largest_label, network.num_classes)  # a replay checks nothing
    x_adv = random_start(x, threat, start, generator)
    objective = _parts(loss.objective)
    amounts = {"eps": threat.eps, "step_size": step_size}
    per_image = {name: amount for name, amount in amounts.items() if isinstance(amount, Tensor)}
    numbers = tuple((name, amount) for name, amount in amounts.items() if name not in per_image)

    def run(x_adv: Tensor, x: Tensor, y: Tensor, *rest: Tensor) -> Tensor:
        given = amounts | dict(zip(per_image, rest, strict=False))
        ball = replace(threat, eps=given["eps"]) if "eps" in per_image else threat
        replayed = replace(loss, y=y, objective=_with_tensors(loss.objective, rest[len(per_image) :]))
        # Without autocast's cache, which would return a weight as it was rounded at the capture.
        with torch.autocast(x.device.type, enabled=False, cache_enabled=False):
            return ascend(replayed, x_adv.clone(), x, ball, steps, given["step_size"])

    key = (_identity(loss), numbers, threat.norm, threat.box, steps, loss.scale)
    return network.graphs.run(run, (x_adv, x, loss.y, *per_image.values(), *objective.tensors.values()), key)


def _why_network_not_captured(network: StepNetwork) -> str | None:
    if network.compiled:
        return "torch.compile and a capture do not go together yet"
    if network.num_classes is None:
        return f"{type(network.model).__name__} is not of ltat.models and has no working copy"
    if altered(network.model):
        return "the network has hooks or patched methods, which a replay would not call"
    return None


def _why_objective_not_captured(objective: Objective, model: nn.Module) -> str | None:
    function, tensors, modules, others = _parts(objective)
    if not _is_module_function(function):
        return "the objective is a closure; bind what it needs by functools.partial(function, name=value)"
    if isinstance(objective, partial) and objective.args:
        return "the objective binds arguments by position; bind them by name"
    device = next(model.parameters()).device
    for name, value in (tensors | others).items():
        if not isinstance(value, Tensor | int | float | str | None) and not _is_module_function(value):
            return (
                f"the objective binds {name}, a {type(value).__name__}; "
                "bind tensors, modules, numbers, strings and functions of a module"
            )
        if isinstance(value, Tensor) and value.device != device:
            return f"the objective binds {name} on {value.device}; move it to the network's {device}"
    return _why_second_network_not_captured(list(modules.values()))


def _is_module_function(value: object) -> bool:
    # A closure or an object holds values, which the capture would freeze; a function of a module holds none.
    return isinstance(value, FunctionType) and not value.__closure__ and "<locals>" not in value.__qualname__


def _why_second_network_not_captured(modules: Sequence[nn.Module]) -> str | None:
    if any(part.training for module in modules for part in module.modules()):
        return "the objective's second network is in training mode"
    if any(map(altered, modules)):
        return "the objective's second network has hooks or patched methods, which a replay would not call"
    return None


def _parts(objective: Objective) -> _Parts:
    if not isinstance(objective, partial):
        return _Parts(objective, {}, {}, {})
    bound = objective.keywords
    tensors = {name: value for name, value in bound.items() if isinstance(value, Tensor)}
    modules = {name: value for name, value in bound.items() if isinstance(value, nn.Module)}
    others = {name: value for name, value in bound.items() if name not in tensors and name not in modules}
    return _Parts(objective.func, tensors, modules, others)


def _with_tensors(objective: Objective, tensors: Sequence[Tensor]) -> Objective:
    """The objective with other tensors, in the order of :func:`_parts`."""
    names = _parts(objective).tensors
    return partial(objective, **dict(zip(names, tensors, strict=True))) if names else objective


def _identity(loss: ModelLoss) -> Hashable:
    """The network, the objective and where their tensors lie."""
    network, objective = loss.model, _parts(loss.objective)
    # Not the wrapper itself, which owns the graphs: in a cycle of references they would outlive it.
    own: tuple[object, ...] = network.parts if isinstance(network, WorkingCopy) else ()
    if isinstance(network, StepNetwork):
        own = (network.model, network.precision)
    modules = [part for part in (*own, *objective.modules.values()) if isinstance(part, nn.Module)]
    values = tuple((name, repr(value)) for name, value in objective.others.items())  # 1, 1.0 and True are equal
    bound = (objective.function, tuple(objective.tensors), tuple(objective.modules.items()), values)
    return own, bound, tuple(_addresses(modules))


def _addresses(modules: Sequence[nn.Module]) -> Iterator[int]:
    for module in modules:
        for tensors in (module.parameters(), module.buffers()):
            yield from (tensor.data_ptr() for tensor in tensors)
