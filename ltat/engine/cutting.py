"""Which nodes of a traced graph run in the copy's dtype; around them values are converted.

Of a classifier of ltat that is the whole trunk. Of the graph of a whole module it is what lies between its first and
its last layer with weights, both included; a last layer that is no convolution runs in the network's dtype, as a last
layer of ltat does. What precedes the first such layer normalises the images, and half precision would round these:
between 1/2 and 1, 8/255 is eight numbers of bf16.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from ltat.engine.tracing import Untraceable

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d)
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Dtypes(NamedTuple):
    """Of the nodes inside, and of those around them, the network's own."""

    inside: torch.dtype
    around: torch.dtype


def inside_trunk(graph: fx.Graph) -> list[fx.Node]:
    """All nodes but the images and the features."""
    return [node for node in graph.nodes if node.op not in ("placeholder", "output")]


def inside_whole(graph: fx.Graph, root: nn.Module) -> list[fx.Node]:
    """The nodes between the first and the last layer with weights, in the order of the graph.

    Raises:
        Untraceable: the graph has no convolution, so that there is nothing to fold or to fuse.
    """
    nodes = list(graph.nodes)
    weighted = [i for i, node in enumerate(nodes) if _has_weights(node, root)]
    if not any(_is_convolution(nodes[i], root) for i in weighted):
        raise Untraceable(f"{type(root.network).__name__} has no convolution")
    last = weighted[-1] + _is_convolution(nodes[weighted[-1]], root)
    return nodes[weighted[0] : last]


def _has_weights(node: fx.Node, root: nn.Module) -> bool:
    if node.op != "call_module":
        return node.op == "call_function" and node.target in (*_CONVOLUTIONS, F.linear)
    module = root.get_submodule(str(node.target))
    return next(module.parameters(), None) is not None and not isinstance(module, _NORMS)


def _is_convolution(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), _ConvNd)
    return node.target in _CONVOLUTIONS


def cut(trunk: fx.GraphModule, inside: Sequence[fx.Node], dtypes: Dtypes) -> None:
    """Convert the tensors of the nodes ``inside`` to their dtype, channels last, and values where they enter or leave.

    Batch norms keep the network's dtype, which is that of their statistics.
    """
    attributes = [node for node in trunk.graph.nodes if node.op == "get_attr"]
    chosen = set(inside) - set(attributes)
    chosen |= {node for node in attributes if chosen.issuperset(node.users)}
    for node in chosen:
        _convert_tensors(node, trunk, dtypes.inside)
    for node in list(trunk.graph.nodes):
        across = [user for user in node.users if (user in chosen) != (node in chosen)]
        if across:
            convert, dtype = (leaving, dtypes.around) if node in chosen else (entering, dtypes.inside)
            with trunk.graph.inserting_before(min(across)):  # what is written into the value before that counts
                converted = trunk.graph.call_function(convert, (node, dtype))
            for user in across:
                user.replace_input_with(node, converted)
    trunk.graph.lint()
    trunk.recompile()


def _convert_tensors(node: fx.Node, trunk: fx.GraphModule, dtype: torch.dtype) -> None:
    path = str(node.target)
    if node.op == "get_attr":
        owner, _, name = path.rpartition(".")
        if not isinstance(trunk.get_submodule(owner), _NormBase):
            tensor = getattr(trunk.get_submodule(owner), name)
            tensor.data = _entering(tensor.data, dtype)
    elif node.op == "call_module":
        module = trunk.get_submodule(path).to(memory_format=torch.channels_last)
        if not isinstance(module, _NormBase):
            module.to(dtype)


def entering(value: object, dtype: torch.dtype) -> object:
    """A tensor of floating-point numbers, or those of a tuple or list, in ``dtype``, images channels last."""
    return _mapped(_entering, value, dtype)


def leaving(value: object, dtype: torch.dtype) -> object:
    """A tensor of floating-point numbers, or those of a tuple or list, in ``dtype``."""
    return _mapped(Tensor.to, value, dtype)


def _entering(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype, memory_format=torch.channels_last if tensor.dim() == 4 else torch.preserve_format)


def _mapped(convert: Callable[[Tensor, torch.dtype], Tensor], value: object, dtype: torch.dtype) -> object:
    if isinstance(value, Tensor):
        return convert(value, dtype) if value.is_floating_point() else value
    if isinstance(value, tuple | list) and any(isinstance(part, Tensor) for part in value):
        return type(value)(_mapped(convert, part, dtype) for part in value)
    return value
