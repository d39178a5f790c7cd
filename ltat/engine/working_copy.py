"""Working copies: a network for evaluation mode, with batch norm folded into the convolutions.

In evaluation mode batch norm is an affine map of fixed numbers, which folds into the weights of the convolution before:

    bn(conv(x; W, b)) = conv(x; g W, g (b - mean) + beta),      g = gamma / sqrt(var + eps)

The products are formed in the network's dtype and then rounded to the copy's. Autocast rounds every weight again in
each of an attack's K steps; a copy rounds once per refresh, that is once per attack, into the same buffers.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ltat.engine.cutting import Dtypes, cut, inside_trunk, inside_whole
from ltat.engine.fusion import fuse_convolutions, fuse_norms, is_affine_norm
from ltat.engine.tracing import Traced, Untraceable, traced_trunk, traced_whole
from ltat.models import Classifier


class WorkingCopy:
    """A copy of a network in evaluation mode, channels last; the batch norms that follow a convolution are folded.

    Of a classifier of ltat the trunk is copied, and normalisation and last layer are the network's own. Any other
    module is copied as a whole; :mod:`ltat.engine.cutting` says which of its operations run in ``dtype``. A batch norm
    that does not follow a convolution (the first of a pre-activation block) is kept, in the network's dtype. The copy
    has the network's structure, device and dtype at construction; :meth:`refresh` copies the weights and statistics
    that have changed since.

    Args:
        model: in any mode; it is not changed.
        dtype: of the copied operations; the network's dtype if None.
        compiled: run the copy through ``torch.compile``.

    Attributes:
        num_classes: number of logits, where it is known.

    Raises:
        Untraceable: the network cannot be traced, has hooks, no convolution, or parameters on several devices.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None, compiled: bool = False) -> None:
        self.model = model
        self.place = _place(model)
        self.modules = list(model.modules())
        self.numbers = _numbers(self.modules)
        self.dtype = dtype or self.place.dtype
        self.compiled = compiled
        self.num_classes = model.num_classes if isinstance(model, Classifier) else None
        self.normalize, traced, inside, self.classifier = _parts(model)
        pairs = _foldable(traced.graph, traced.copied)
        norms = [module for module in traced.copied.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self.kept = len(norms) - len(pairs)
        erased = _erase_norms(traced.graph, pairs)
        trunk = fx.GraphModule(traced.copied, traced.graph)
        cut(trunk, [node for node in inside if node not in erased], Dtypes(self.dtype, self.place.dtype))
        self.folded = _Folded(traced.source, trunk, pairs)
        fused_norms = [] if compiled else fuse_norms(trunk)  # torch.compile fuses by itself
        self.affine = _AffineNorms(traced.source, trunk, fused_norms)
        self.copied = _tensors(trunk, traced.source, {pair.conv for pair in pairs} | set(fused_norms))
        self.fused = 0 if compiled else fuse_convolutions(trunk)
        self.body = trunk
        self.trunk = torch.compile(trunk) if compiled else trunk
        self.refresh()

    def __reduce__(self) -> tuple[Any, ...]:
        # Copied part by part, the biases would no longer be views of the buffer that a refresh writes.
        return type(self), (self.model, self.dtype, self.compiled), {"num_classes": self.num_classes}

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The modules that a forward runs."""
        return self.body, self.normalize, self.classifier

    @property
    def fits(self) -> bool:
        """Whether the network still has its parts, numbers, place and dtype, and neither hooks nor patched methods."""
        if list(self.model.modules()) != self.modules or _places(self.model) != {self.place} or altered(self.model):
            return False
        return all(attributes.get(name) == value for attributes, name, value in self.numbers)

    @torch.no_grad()
    def refresh(self) -> "WorkingCopy":
        """Copy the network's present weights and statistics, in place."""
        self.folded.refresh()
        self.affine.refresh()
        for own, owner, name in self.copied:
            own.copy_(getattr(owner, name))
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [B, C] of images [B, ch, H, W], in the network's dtype."""
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self.classifier(self.trunk(self.normalize(x)))
        return logits

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        kept = f", {self.kept} kept" if self.kept else ""
        fused = f"; {self.fused} convolutions fused" if self.fused else ""
        return f"working copy in {dtype}, {len(self.folded.convs)} batch norms folded{kept}{fused}"


class FrozenCopy(nn.Module):
    """A working copy of a network that does not change, as a module; a forward refreshes nothing.

    Its parameters and buffers are those that a forward reads, so that a CUDA graph can compare their addresses.

    Args:
        work: of a network in evaluation mode and without gradient.
    """

    def __init__(self, work: WorkingCopy) -> None:
        super().__init__()
        self.work = work
        self.body, self.normalize, self.classifier = work.parts
        self.training = False  # not eval(), which would leave the last layer, that of the network, in this mode
        self.body.eval()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.work,)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of images [B, ch, H, W], in the network's dtype."""
        return self.work(x)


class _Place(NamedTuple):
    device: torch.device
    dtype: torch.dtype


class _Pair(NamedTuple):
    """The names of a convolution and of the batch norm that is its only reader."""

    conv: str
    norm: str


class _Number(NamedTuple):
    """A value among the attributes of a module."""

    attributes: dict[str, object]
    name: str
    value: object


class _Parts(NamedTuple):
    """What runs before the copied graph, the graph, its nodes in the copy's dtype, and what runs behind it."""

    before: nn.Module
    traced: Traced
    inside: list[fx.Node]
    behind: nn.Module


def _parts(model: nn.Module) -> _Parts:
    if altered(model):
        raise Untraceable(f"{type(model).__name__} has hooks or a patched method, which a copy would lose")
    if not isinstance(model, Classifier):
        traced = traced_whole(model)
        return _Parts(nn.Identity(), traced, inside_whole(traced.graph, traced.copied), nn.Identity())
    if type(model).forward is not Classifier.forward or type(model).features is not Classifier.features:
        raise Untraceable(f"{type(model).__name__} overrides forward or features")
    traced = traced_trunk(model)
    return _Parts(model.normalize, traced, inside_trunk(traced.graph), model.classifier)


def altered(model: nn.Module) -> bool:
    """Whether any module of the model has a hook, or an instance attribute in place of its class's forward."""
    patched = isinstance(model, Classifier) and not {"features", "trunk"}.isdisjoint(vars(model))
    return patched or any("forward" in vars(m) or _hooked(m) for m in model.modules())


def _hooked(module: nn.Module) -> bool:
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


def _place(model: nn.Module) -> _Place:
    places = _places(model)
    if len(places) != 1:
        found = f"parameters of {len(places)} devices and dtypes" if places else "no parameters"
        raise Untraceable(f"{type(model).__name__} has {found}")
    return _Place(*places.pop())


def _places(model: nn.Module) -> set[tuple[torch.device, torch.dtype]]:
    return {(parameter.device, parameter.dtype) for parameter in model.parameters()}


def _numbers(modules: list[nn.Module]) -> list[_Number]:
    """What a trace freezes of the modules: their numbers and strings, but for their mode."""
    kinds = {int, float, str, bool}
    attributes = [(vars(module), name, value) for module in modules for name, value in vars(module).items()]
    return [_Number(*each) for each in attributes if type(each[2]) in kinds and each[1] != "training"]


def _foldable(graph: fx.Graph, body: nn.Module) -> list[_Pair]:
    calls = [node for node in graph.nodes if node.op == "call_module"]
    uses = Counter(str(node.target) for node in calls)
    shared = _shared(graph, body)
    pairs = []
    for node in calls:
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        pair = _Pair(str(before.target), str(node.target))
        conv, norm = map(body.get_submodule, pair)
        if uses[pair.conv] != 1 or uses[pair.norm] != 1 or not shared.isdisjoint(conv.parameters()):
            continue
        if _affine_in_evaluation(conv, norm):
            pairs.append(pair)
    return pairs


def _shared(graph: fx.Graph, body: nn.Module) -> set[Tensor]:
    """Parameters that several modules or the trunk itself read; folding into them would change other layers too."""
    named = dict(body.named_parameters(remove_duplicate=False))
    names = [*named, *(str(node.target) for node in graph.nodes if node.op == "get_attr")]
    owners = Counter(named[name] for name in names if name in named)
    return {parameter for parameter, count in owners.items() if count > 1}


def _affine_in_evaluation(conv: nn.Module, norm: nn.Module) -> bool:
    return type(conv) is nn.Conv2d and is_affine_norm(norm)  # not a subclass, whose forward may do more


def _erase_norms(graph: fx.Graph, pairs: list[_Pair]) -> set[fx.Node]:
    norms = {pair.norm for pair in pairs}
    erased = {node for node in graph.nodes if node.op == "call_module" and node.target in norms}
    for node in erased:
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    return erased


def _tensors(trunk: nn.Module, model: nn.Module, folded: set[str]) -> list[tuple[Tensor, nn.Module, str]]:
    # Owner and name, not the tensor: a buffer may be assigned anew.
    copied = []
    for path, own in [*trunk.named_parameters(), *trunk.named_buffers()]:
        owner, _, name = path.rpartition(".")
        if owner not in folded and hasattr(model.get_submodule(owner), name):  # not a constant of the trace
            copied.append((own, model.get_submodule(owner), name))
    return copied


class _Norms:
    """Batch norms of one network, and what they map channels by: y = scale · x + shift."""

    def __init__(self, norms: list[Any]) -> None:
        self.norms = norms
        self.sizes = [norm.num_features for norm in norms]
        self.eps = torch.cat([torch.full_like(norm.running_var, norm.eps) for norm in norms])

    def scale_and_shift(self, biases: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
        """Those of all channels, norm after norm; ``biases`` are those of the convolutions before the norms."""
        scale = (self._all("running_var") + self.eps).rsqrt_() * self._all("weight")
        mean = self._all("running_mean")
        for bias, part in zip(biases, mean.split(self.sizes), strict=True):
            if bias is not None:
                part.sub_(bias)
        return scale, self._all("bias") - mean * scale

    def _all(self, name: str) -> Tensor:
        return torch.cat([getattr(norm, name) for norm in self.norms])


class _AffineNorms:
    """The norms that ``trunk`` runs together with their ReLU; their scales and shifts are views of two buffers."""

    def __init__(self, model: nn.Module, trunk: nn.Module, names: list[str]) -> None:
        if not names:
            self.norms = None
            return
        self.norms = _Norms([model.get_submodule(name) for name in names])
        self.buffers = torch.empty_like(self.norms.eps), torch.empty_like(self.norms.eps)
        parts = (buffer.split(self.norms.sizes) for buffer in self.buffers)
        for name, scale, shift in zip(names, *parts, strict=True):
            affine: Any = trunk.get_submodule(name)
            affine.scale, affine.shift = scale, shift

    def refresh(self) -> None:
        """All scales and shifts at once."""
        if self.norms is not None:
            for buffer, values in zip(
                self.buffers, self.norms.scale_and_shift([None] * len(self.norms.norms)), strict=True
            ):
                buffer.copy_(values)


class _Folded:
    """The convolutions of ``body`` that carry a batch norm of ``model``; their biases are views of one buffer."""

    def __init__(self, model: nn.Module, body: nn.Module, pairs: list[_Pair]) -> None:
        own: list[Any] = [body.get_submodule(pair.conv) for pair in pairs]
        self.convs: list[Any] = [model.get_submodule(pair.conv) for pair in pairs]
        self.weights: list[Tensor] = [conv.weight for conv in own]
        if pairs:
            self.norms = _Norms([model.get_submodule(pair.norm) for pair in pairs])
            self.bias = torch.empty_like(self.norms.eps, dtype=self.weights[0].dtype)
            for conv, bias in zip(own, self.bias.split(self.norms.sizes), strict=True):
                conv.bias = nn.Parameter(bias, requires_grad=False)

    def refresh(self) -> None:
        """All scales and shifts at once, then each weight in one pass: few kernels even for a deep network."""
        if not self.convs:
            return
        scale, shift = self.norms.scale_and_shift([conv.bias for conv in self.convs])
        self.bias.copy_(shift)
        for conv, weight, factor in zip(self.convs, self.weights, scale.split(self.norms.sizes), strict=True):
            torch.mul(conv.weight, factor.view(-1, 1, 1, 1), out=weight)
