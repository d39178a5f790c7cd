"""Working copies: the body of a network for evaluation mode, with batch norm folded into the convolutions.

In evaluation mode batch norm is an affine map of fixed numbers, which folds into the weights of the convolution before:

    bn(conv(x; W, b)) = conv(x; g W, g (b - mean) + beta),      g = gamma / sqrt(var + eps)

The products are formed in the network's dtype and then rounded to the copy's. Autocast rounds every weight again in
each of an attack's K steps; a copy rounds once per refresh, that is once per attack, into the same buffers.
"""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ltat.engine.fusion import fuse_convolutions, fuse_norms, is_affine_norm
from ltat.models import Classifier


class Untraceable(Exception):
    """Why a network cannot be copied; whoever needs it then runs the network itself."""


class WorkingCopy:
    """A copy of a network's body in evaluation mode, channels last; normalisation and last layer are the network's.

    A batch norm that does not follow a convolution (the first of a pre-activation block) is kept, in the network's
    dtype. The copy has the network's structure, device and dtype at construction; :meth:`refresh` copies the weights
    and statistics that have changed since.

    Args:
        model: one of ``ltat.models``, in any mode; it is not changed.
        dtype: of the copied body; the network's dtype if None.
        compiled: run the body through ``torch.compile``.

    Raises:
        Untraceable: the network is not of ``ltat.models``, or its trunk cannot be traced.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None = None, compiled: bool = False) -> None:
        self.model = _copyable(model)
        self.place = _place(model)
        self.modules = list(model.modules())
        self.dtype = dtype or self.place.dtype
        self.compiled = compiled
        body, graph = _traced(self.model)
        pairs = _foldable(graph, body)
        norms = [module for module in body.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        body.to(self.dtype).to(memory_format=torch.channels_last)
        for norm in norms:
            norm.to(self.place.dtype)
        self.kept = len(norms) - len(pairs)
        self.folded = _Folded(self.model, body, pairs)
        trunk = _without_norms(graph, body, pairs)
        fused_norms = [] if compiled else fuse_norms(trunk)  # torch.compile fuses by itself
        self.affine = _AffineNorms(self.model, trunk, fused_norms)
        self.copied = _tensors(trunk, self.model, {pair.conv for pair in pairs} | set(fused_norms))
        self.fused = 0 if compiled else fuse_convolutions(trunk)
        self.body = trunk
        self.trunk = torch.compile(trunk) if compiled else trunk
        self.refresh()

    def __reduce__(self) -> tuple[Any, ...]:
        # Copied part by part, the biases would no longer be views of the buffer that a refresh writes.
        return type(self), (self.model, self.dtype, self.compiled)

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The modules that a forward runs."""
        return self.body, self.model.normalize, self.model.classifier

    @property
    def fits(self) -> bool:
        """Whether the network still has its parts, place and dtype, and neither hooks nor patched methods."""
        same = _place(self.model) == self.place and list(self.model.modules()) == self.modules
        return same and not altered(self.model)

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
            images = self.model.normalize(x).to(self.dtype, memory_format=torch.channels_last)
            logits: Tensor = self.model.classifier(self.trunk(images).to(self.place.dtype))
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


def _copyable(model: nn.Module) -> Classifier:
    if not isinstance(model, Classifier):
        raise Untraceable(f"{type(model).__name__} is not of ltat.models")
    if type(model).forward is not Classifier.forward or type(model).features is not Classifier.features:
        raise Untraceable(f"{type(model).__name__} overrides forward or features")
    if altered(model):
        raise Untraceable(f"{type(model).__name__} has hooks or a patched method, which a copy would lose")
    return model


def altered(model: nn.Module) -> bool:
    """Whether any module of the model has a hook, or an instance attribute in place of its class's forward."""
    patched = not {"forward", "features", "trunk"}.isdisjoint(vars(model))
    return patched or any("forward" in vars(m) or _hooked(m) for m in model.modules())


def _hooked(module: nn.Module) -> bool:
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


def _place(model: nn.Module) -> _Place:
    weight = next(model.parameters())
    return _Place(weight.device, weight.dtype)


class _Tracer(fx.Tracer):
    """Traces a module down to the modules without children."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.children(), None) is None


def _traced(model: Classifier) -> tuple[Classifier, fx.Graph]:
    tracer = _Tracer()
    tracer.traced_func_name = "trunk"
    try:
        body = copy.deepcopy(model).eval().requires_grad_(False)
        return body, tracer.trace(body)
    except Exception as error:  # a user's trunk may do anything with the proxies of a trace
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise Untraceable(f"the trunk of {type(model).__name__} cannot be traced: {reason}") from error


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


def _without_norms(graph: fx.Graph, body: nn.Module, pairs: list[_Pair]) -> fx.GraphModule:
    norms = {pair.norm for pair in pairs}
    for node in [node for node in graph.nodes if node.op == "call_module" and node.target in norms]:
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)
    return fx.GraphModule(body, graph)


def _tensors(trunk: nn.Module, model: nn.Module, folded: set[str]) -> list[tuple[Tensor, nn.Module, str]]:
    # Owner and name, not the tensor: a buffer may be assigned anew.
    copied = []
    for path, own in [*trunk.named_parameters(), *trunk.named_buffers()]:
        owner, _, name = path.rpartition(".")
        if owner not in folded:
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
