"""Rewrites a traced trunk so that convolution, residual sum and ReLU run as one operation (:mod:`ltat.engine.fused`)."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from ltat.engine.fused import Geometry, fused_convolution

_RELU: tuple[Callable[..., Any], ...] = (F.relu, torch.relu)
_ADD: tuple[Callable[..., Any], ...] = (operator.add, operator.iadd, torch.add)


class _Pattern(NamedTuple):
    """The nodes of one operation; ``last`` is the one whose output the others read."""

    convolution: fx.Node
    residual: fx.Node | None
    relu: bool
    nodes: tuple[fx.Node, ...]

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]


def fuse(trunk: fx.GraphModule) -> int:
    """Fuse what fits, in place; the rest of the graph stays as it is.

    Returns:
        The number of fused convolutions.
    """
    fused = 0
    for node in list(trunk.graph.nodes):
        if _is_convolution(node, trunk):
            pattern = _pattern_at(node, trunk)
            if not _disturbed(pattern):
                _replace(pattern, trunk)
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


def _disturbed(pattern: _Pattern) -> bool:
    """Whether an operation in place changes what the fused one reads, before it runs, or what it has written."""
    node, between = pattern.convolution, set[fx.Node]()
    while (node := node.next) is not pattern.last and pattern.last is not pattern.convolution:
        between.add(node)
    return any(map(_writes_in_place, (between - set(pattern.nodes)) | set(pattern.last.users)))


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


def _writes_in_place(node: fx.Node) -> bool:
    if node.op == "call_method":
        return str(node.target).endswith("_")
    if node.op == "call_module":
        owner = node.graph.owning_module
        return owner is not None and bool(getattr(owner.get_submodule(str(node.target)), "inplace", False))
    in_place_operators = (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem)
    return node.target in in_place_operators or bool(node.kwargs.get("inplace")) or node.args[1:2] == (True,)


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
