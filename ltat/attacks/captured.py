"""The K steps of an attack as one CUDA graph: what goes into it, and which attacks cannot.

Inputs, copied into the graph's buffers by every attack, are the start, the images and labels, the radii and steps per
image, and what the objective holds. The network is read where it stands: an optimiser writes into the same tensors, and
so does the refresh of a working copy, before the graph. If a tensor has moved, the attack is captured anew.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from types import FunctionType

import torch
from torch import Tensor, nn

from ltat.attacks.ascent import Ascent, check_label
from ltat.attacks.objectives import Held, Objective
from ltat.attacks.threat import ThreatModel
from ltat.engine.network import StepNetwork
from ltat.engine.working_copy import WorkingCopy, altered
from ltat.models import Classifier


def why_not_captured(
    network: StepNetwork,
    objective: Objective,
    *,
    mode: str = "eval",
    steps: int = 1,
    restarts: int = 1,
    keep: str = "last",
) -> str | None:
    """Why this attack runs step by step, in words; ``None`` where one graph can hold it."""
    if network.graphs is None:
        return "no graph was asked for"
    if mode != "eval":
        return f"mode={mode} changes more than the images"
    if steps == 0 or restarts > 1 or keep != "last":
        return "only the last iterate of one start is captured"
    return _why_not_replayed(network) or _why_not_held(objective)


def _why_not_replayed(network: StepNetwork) -> str | None:
    if network.compiled:
        return "torch.compile and a capture do not go together yet"
    if not isinstance(network.model, Classifier):
        return f"{type(network.model).__name__} is none of ltat.models"
    if altered(network.model):
        return "the network has hooks or patched methods, which a replay would not call"
    return None


def _why_not_held(objective: Objective) -> str | None:
    function, modules = (objective.function, objective.modules) if isinstance(objective, Held) else (objective, ())
    # What a closure or an object holds would be frozen at the capture; a function of a module holds nothing.
    if not isinstance(function, FunctionType) or function.__closure__ or "<locals>" in function.__qualname__:
        return "the objective is a closure; build it as ltat.attacks.Held"
    if any(part.training for module in modules for part in module.modules()):
        return "the objective's second network is in training mode"
    if any(map(altered, modules)):
        return "the objective's second network has hooks or patched methods, which a replay would not call"
    return None


def captured_climb(
    network: StepNetwork,
    ascent: Ascent,
    x_adv: Tensor,
    x: Tensor,
    threat: ThreatModel,
    steps: int,
    step_size: float | Tensor,
) -> Tensor:
    """:meth:`Ascent.climb` by one of the graphs of ``network``, which :func:`why_not_captured` has nothing against.

    From ``x_adv`` [B, ch, H, W] on, but into a tensor of its own.
    """
    assert network.graphs is not None and isinstance(network.model, Classifier)
    check_label(ascent.largest_label, network.model.num_classes)  # a replay checks nothing
    amounts = {"eps": threat.eps, "step_size": step_size}
    each = {name: amount for name, amount in amounts.items() if isinstance(amount, Tensor)}
    held = ascent.objective.tensors if isinstance(ascent.objective, Held) else ()

    def climb(start: Tensor, x: Tensor, y: Tensor, *rest: Tensor) -> Tensor:
        given = amounts | dict(zip(each, rest, strict=False))
        own = _holding(ascent.objective, rest[len(each) :])
        ball = replace(threat, eps=given["eps"]) if "eps" in each else threat
        # Without autocast's cache, which would hand out a weight as it was rounded at the capture.
        with torch.autocast(x.device.type, enabled=False, cache_enabled=False):
            return replace(ascent, y=y, objective=own).climb(start.clone(), x, ball, steps, given["step_size"])

    numbers = tuple((name, amount) for name, amount in amounts.items() if name not in each)
    key = (_identity(ascent), numbers, threat.norm, threat.box, steps, ascent.scale)
    return network.graphs.run(climb, (x_adv, x, ascent.y, *each.values(), *held), key)


def _holding(objective: Objective, tensors: Sequence[Tensor]) -> Objective:
    return replace(objective, tensors=tuple(tensors)) if isinstance(objective, Held) else objective


def _identity(ascent: Ascent) -> Hashable:
    """The network, the objective and where their tensors lie."""
    network, objective = ascent.model, ascent.objective
    function, others = (objective.function, objective.modules) if isinstance(objective, Held) else (objective, ())
    # Not the wrapper itself, which owns the graphs: in a cycle of references they would outlive it.
    own: tuple[object, ...] = network.parts if isinstance(network, WorkingCopy) else ()
    if isinstance(network, StepNetwork):
        own = (network.model, network.precision)
    modules = [part for part in (*own, *others) if isinstance(part, nn.Module)]
    return own, function, others, tuple(_addresses(modules))


def _addresses(modules: Sequence[nn.Module]) -> Iterator[int]:
    for module in modules:
        for tensors in (module.parameters(), module.buffers()):
            yield from (tensor.data_ptr() for tensor in tensors)
