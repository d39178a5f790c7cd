"""The graph of a network in evaluation mode, by ``torch.fx``, down to modules without children."""

import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from ltat.models import Classifier

IN_PLACE: tuple[Callable[..., Any], ...] = (
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
    operator.ifloordiv,
    operator.imod,
    operator.ipow,
    operator.iand,
    operator.ior,
    operator.ixor,
)
"""Python's augmented assignments that write into a tensor."""


class Untraceable(Exception):
    """Why a network cannot be copied; whoever needs it then runs the network itself."""


class Traced(NamedTuple):
    """A graph, and the modules that its names start from: of the copy that was traced, and of the network itself."""

    graph: fx.Graph
    copied: nn.Module
    source: nn.Module


def traced_trunk(model: Classifier) -> Traced:
    """The trunk of a classifier, in evaluation mode.

    Raises:
        Untraceable: the trunk looks at its numbers, or computes as in training even in evaluation mode.
    """
    return _traced(lambda network: network, model, "trunk", f"the trunk of {type(model).__name__}")


def traced_whole(model: nn.Module) -> Traced:
    """The whole forward of a module, in evaluation mode, as a function of the images: other arguments keep defaults.

    Raises:
        Untraceable: see :func:`traced_trunk`.
    """
    traced = _traced(_Whole, model, "forward", type(model).__name__)
    for node in traced.graph.nodes:
        if node.op == "call_method" and node.target == "view":  # which fails on many a tensor that lies channels last
            node.target = "reshape"
    return traced


class _Whole(nn.Module):
    """A network as a part, so that in a graph the network itself has a name too."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


def _traced(rooted: Callable[[nn.Module], nn.Module], model: nn.Module, method: str, name: str) -> Traced:
    tracer = _Tracer()
    tracer.traced_func_name = method
    try:
        copied = rooted(copy.deepcopy(model)).eval().requires_grad_(False)
        graph = tracer.trace(copied)
    except Exception as error:  # a user's forward may do anything with the proxies of a trace
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise Untraceable(f"{name} cannot be traced: {reason}") from error
    _refuse_training(graph, copied, name)
    return Traced(graph, copied, rooted(model))


def _refuse_training(graph: fx.Graph, copied: nn.Module, name: str) -> None:
    for path, module in copied.named_modules():
        if module.training:
            raise Untraceable(f"{name} keeps {path} in training mode in evaluation")
    for node in graph.nodes:
        if node.op == "call_function" and _arguments(node).get("training") is True:
            raise Untraceable(f"{name} calls {node.target.__name__} with training=True in evaluation")


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name, defaults included; none where the function does not tell their names."""
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return {}
    bound.apply_defaults()
    return bound.arguments


def _recorded(operation: Callable[..., Any]) -> Callable[["_Value", object], fx.Proxy]:
    return lambda value, other: value.tracer.create_proxy("call_function", operation, (value, other), {})


class _Value(fx.Proxy):
    """A value of a trace on which ``z += x`` stays what it is; fx would make it a sum beside ``z``."""

    __iadd__ = _recorded(operator.iadd)
    __isub__ = _recorded(operator.isub)
    __imul__ = _recorded(operator.imul)
    __itruediv__ = _recorded(operator.itruediv)
    __ifloordiv__ = _recorded(operator.ifloordiv)
    __imod__ = _recorded(operator.imod)
    __ipow__ = _recorded(operator.ipow)
    __iand__ = _recorded(operator.iand)
    __ior__ = _recorded(operator.ior)
    __ixor__ = _recorded(operator.ixor)


class _Tracer(fx.Tracer):
    """Traces a module down to the modules without children."""

    proxy_buffer_attributes = True  # what a forward computes from a buffer follows it, like a buffer that it reads

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)
