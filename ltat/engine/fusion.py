"""Rewrites a traced trunk so that it runs the operations of :mod:`ltat.engine.fused` where its graph has them."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd

from ltat.engine.fused import Geometry, fused_convolution, fused_norm
from ltat.engine.global_norm import NORMS
from ltat.engine.tracing import IN_PLACE

_RELU: tuple[Callable[..., Any], ...] = (F.relu, torch.relu)
_ADD: tuple[Callable[..., Any], ...] = (operator.add, operator.iadd, torch.add)
_FRESH = (nn.Conv2d, *NORMS, nn.Linear, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.ReLU)
_FRESH_FUNCTIONS = (*_ADD, *_RELU, operator.sub, operator.mul, operator.truediv, torch.mul, torch.cat, F.batch_norm)
"""What gives new memory, and not its input or a view of it, unless it works in place."""


class _Pattern(NamedTuple):
    """The nodes of one operation; ``last`` is the one whose output the others read."""

    convolution: fx.Node
    residual: fx.Node | None
    relu: bool
    nodes: tuple[fx.Node, ...]

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]


class Affine(nn.Module):
    """The scale and shift [channels] of a batch norm in evaluation mode, in fp32."""

    def __init__(self, channels: int, device: torch.device) -> None:
        super().__init__()
        self.scale: torch.Tensor
        self.shift: torch.Tensor
        for name in ("scale", "shift"):
            self.register_buffer(name, torch.empty(channels, device=device))


def fuse_norms(trunk: fx.GraphModule) -> list[str]:
    """Fuse batch norms with the ReLU behind them, in place; an :class:`Affine` takes the place of each norm.

    Returns:
        The names of these norms, whose scales and shifts the caller fills in.
    """
    fused: list[str] = []
    if _writes_what_others_read(trunk):
        return fused
    for node in list(trunk.graph.nodes):
        relu = _only_reader(node) if _is_norm(node, trunk) else None
        if relu is not None and relu.users and _is_relu(relu, trunk):
            _replace_norm(node, relu, trunk)
            fused.append(str(node.target))
    trunk.graph.lint()
    trunk.recompile()
    return fused


def _replace_norm(norm: fx.Node, relu: fx.Node, trunk: fx.GraphModule) -> None:
    path, x = str(norm.target), norm.all_input_nodes[0]
    old: Any = trunk.get_submodule(path)
    trunk.set_submodule(path, Affine(old.num_features, old.running_var.device))
    readers, later = list(relu.users), [user for user in x.users if user is not norm and relu < user]
    with trunk.graph.inserting_before(relu):
        affine = (trunk.graph.get_attr(f"{path}.scale"), trunk.graph.get_attr(f"{path}.shift"))
        outputs = trunk.graph.call_function(fused_norm, (x, *affine, len(readers), len(later)))
        for i, (reader, read) in enumerate([(reader, relu) for reader in readers] + [(user, x) for user in later]):
            reader.replace_input_with(read, trunk.graph.call_function(operator.getitem, (outputs, i)))
    trunk.graph.erase_node(relu)
    trunk.graph.erase_node(norm)


def _is_norm(node: fx.Node, trunk: fx.GraphModule) -> bool:
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    norm = trunk.get_submodule(str(node.target))
    once = sum(_reads_module(other, str(node.target)) for other in trunk.graph.nodes) == 1
    return once and is_affine_norm(norm) and norm.running_var.dtype == torch.float32


def _reads_module(node: fx.Node, path: str) -> bool:
    called = node.op == "call_module" and node.target == path
    return called or (node.op == "get_attr" and str(node.target).rpartition(".")[0] == path)


def is_affine_norm(norm: nn.Module) -> bool:
    """Whether a module is a batch norm, and no subclass, that maps each channel affinely in evaluation mode."""
    if type(norm) not in NORMS:
        return False
    return norm.weight is not None and norm.bias is not None and norm.running_var is not None


def fuse_convolutions(trunk: fx.GraphModule) -> int:
    """Fuse convolutions with the sum and the ReLU behind them, in place; the rest of the graph stays as it is.

    Returns:
        The number of fused convolutions.
    """
    fused = 0
    if _writes_what_others_read(trunk):
        return fused
    for node in list(trunk.graph.nodes):
        if _is_convolution(node, trunk):
            _replace(_pattern_at(node, trunk), trunk)
            fused += 1
    trunk.graph.lint()
    trunk.recompile()
    return fused


def _pattern_at(convolution: fx.Node, trunk: fx.GraphModule) -> _Pattern:
    nodes, residual = [convolution], None
    reader = _only_reader(nodes[-1])
    if reader is not None and (residual := _residual(reader, convolution)) is not None:
        nodes.append(reader)
        reader = _only_reader(nodes[-1])
    relu = reader is not None and _is_relu(reader, trunk)
    if relu and reader is not None:
        nodes.append(reader)
    return _Pattern(convolution, residual, relu, tuple(nodes))


def _replace(pattern: _Pattern, trunk: fx.GraphModule) -> None:
    conv: Any = trunk.get_submodule(str(pattern.convolution.target))
    geometry = Geometry(conv.stride, conv.padding, conv.dilation, conv.groups)
    readers = list(pattern.last.users)
    with trunk.graph.inserting_before(pattern.last):
        weight = trunk.graph.get_attr(f"{pattern.convolution.target}.weight")
        bias = None if conv.bias is None else trunk.graph.get_attr(f"{pattern.convolution.target}.bias")
        arguments = (pattern.convolution.args[0], pattern.residual, weight, bias, geometry, pattern.relu, len(readers))
        outputs = trunk.graph.call_function(fused_convolution, arguments)
        for i, reader in enumerate(readers):
            output = trunk.graph.call_function(operator.getitem, (outputs, i))
            reader.replace_input_with(pattern.last, output)
    for node in reversed(pattern.nodes):
        trunk.graph.erase_node(node)


def _is_convolution(node: fx.Node, trunk: fx.GraphModule) -> bool:
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return False
    module = trunk.get_submodule(str(node.target))
    # Not its subclasses, whose forward may do more.
    return type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _is_relu(node: fx.Node, trunk: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return type(trunk.get_submodule(str(node.target))) is nn.ReLU
    return node.target in _RELU if node.op == "call_function" else _is_method(node, "relu", "relu_")


def _residual(node: fx.Node, convolution: fx.Node) -> fx.Node | None:
    """What ``node`` adds to the convolution, if it is a sum of two tensors."""
    added = node.target in _ADD if node.op == "call_function" else _is_method(node, "add", "add_")
    if not added or node.kwargs or len(node.args) != 2 or node.args[0] is node.args[1]:
        return None
    first, second = node.args
    if first is not convolution and _writes_in_place(node):
        return None  # others may read what the sum overwrites
    other = second if first is convolution else first
    return other if isinstance(other, fx.Node) else None


def _is_method(node: fx.Node, *names: str) -> bool:
    return node.op == "call_method" and node.target in names


def _writes_what_others_read(trunk: fx.GraphModule) -> bool:
    """Whether an operation in place changes a tensor that others may read, so that their order counts.

    The readers of a fused operation have separate tensors on the same memory, and autograd would not see that what
    one of them writes changes the others'.
    """
    return any(_writes_in_place(node) and not _is_own(node.args[0], trunk) for node in trunk.graph.nodes)


def _is_own(written: object, trunk: fx.GraphModule) -> bool:
    """Whether ``written`` is memory that only one operation reads: new, or all that it may lie in is such memory."""
    if not isinstance(written, fx.Node) or len(written.users) != 1:
        return False
    if _writes_in_place(written):
        return _is_own(written.args[0], trunk)
    module = type(trunk.get_submodule(str(written.target))) if written.op == "call_module" else None
    if module in _FRESH or written.target in _FRESH_FUNCTIONS:
        return True
    inputs = written.all_input_nodes
    return len(inputs) > 0 and all(_is_own(node, trunk) for node in inputs)


def _writes_in_place(node: fx.Node) -> bool:
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.op == "call_module":
        owner = node.graph.owning_module
        module = None if owner is None else owner.get_submodule(str(node.target))
        return bool(getattr(module, "inplace", False)) and not isinstance(module, _DropoutNd)  # idle in evaluation
    if node.op != "call_function":
        return False
    by_argument = bool(node.kwargs.get("inplace")) or any(argument is True for argument in node.args[1:])
    by_name = "out" in node.kwargs or getattr(node.target, "__name__", "").endswith("_")
    return node.target in (*IN_PLACE, operator.setitem) or by_argument or by_name


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
