"""Where the weights of a network lie in a foreign checkpoint, and under which names."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ltat.models.base import Classifier

_INNER_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # anywhere in a name
_AVERAGES = ("ema", "avg", "average", "shadow", "swa")
_COUNTS = ("n_averaged", "initted", "step", "num_updates", "decay")  # of wrappers that average weights
_NESTED = 8  # mappings inside each other; weights lie two or three deep


@dataclass(frozen=True)
class Contents:
    """The tensors of a checkpoint.

    Attributes:
        tensors: by their whole name, the keys of nested mappings and the parts of parameter names joined by dots.
        mapping: for each of these names that of the mapping it stands in.
        unnamed: places of averages that are bare lists of tensors, without names.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    mapping: dict[str, str] = field(default_factory=dict)
    unnamed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Dialect:
    """A project's names for the weights of one of our networks.

    Attributes:
        names: its name of each entry of our state dict, without those that it does not store.
        unused: what its names begin with where its forward pass reads nothing.
        zero: names of what we have no place for, and which therefore must be zero.
    """

    names: dict[str, str]
    unused: tuple[str, ...] = ()
    zero: tuple[str, ...] = ()


def contents(loaded: object) -> Contents:
    """All tensors in nested mappings, without the marks that compiling and sharding leave in names."""
    found = Contents()
    for place, mapping in _mappings(loaded):
        for key, value in mapping.items():
            name = _joined(place, *(part for part in str(key).split(".") if part not in _INNER_WRAPPERS))
            if isinstance(value, Tensor):
                found.tensors[name], found.mapping[name] = value, place
            elif _is_average(name, value):
                found.unnamed.append(name)
    return found


def _mappings(loaded: object) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    seen: set[int] = set()  # a file may refer to itself
    waiting = [("", loaded, 0)]
    while waiting:
        place, value, depth = waiting.pop(0)
        if isinstance(value, Mapping) and id(value) not in seen and depth <= _NESTED:
            seen.add(id(value))
            yield place, value
            waiting += [(_joined(place, str(key)), inner, depth + 1) for key, inner in value.items()]


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _is_average(name: str, value: object) -> bool:
    if not isinstance(value, list | tuple) or not any(mark in name.lower() for mark in _AVERAGES):
        return False
    return sum(isinstance(item, Tensor) and item.is_floating_point() for item in value) > 1


def copies(model: Classifier, found: Contents) -> dict[str, Dialect]:
    """Where the checkpoint holds all parameters of the network: what their names begin with, and the dialect."""
    places = {}
    for dialect in dialects(model):
        needed = [dialect.names[own] for own, _ in model.named_parameters() if own in dialect.names]
        for name in found.tensors:
            place = name.removesuffix(needed[0])
            if place[-1:] in ("", ".") and all(place + other in found.tensors for other in needed):
                places[place] = dialect
    return places


def closest(model: Classifier, found: Contents) -> tuple[str, Dialect]:
    """The place and the dialect that share most names with the network, for an error that names the missing tensors."""
    best, most = ("", dialects(model)[0]), 0
    for dialect in dialects(model):
        shared: dict[str, int] = {}
        for theirs in dialect.names.values():
            for name in found.tensors:
                place = name.removesuffix(theirs)
                if name.endswith(theirs) and place[-1:] in ("", "."):
                    shared[place] = shared.get(place, 0) + 1
        for place, number in shared.items():
            if number > most:
                best, most = (place, dialect), number
    return best


def dialects(model: Classifier) -> list[Dialect]:
    """Our own names first, then those of RoBal's and of REAT's code."""
    own = list(model.state_dict())
    return [
        Dialect(dict(zip(own, own, strict=True)), unused=("sub_block1.",)),  # of the TRADES WideResNet
        Dialect(
            _translated(own, lambda name: _in_robal(name, model)),
            unused=("backbone.sub_block1.", "classifier.moving_ed"),
            zero=("classifier.bias",),
        ),
        Dialect(_translated(own, lambda name: _in_reat(name, model))),
    ]


def _translated(own: list[str], translate: Callable[[str], str | None]) -> dict[str, str]:
    return {name: theirs for name in own if (theirs := translate(name)) is not None}


def _in_robal(name: str, model: Classifier) -> str | None:
    """wutong16/Adversarial_Long-Tail: a backbone and a classifier; the constants of a cosine layer are not stored."""
    layer, _, rest = name.rpartition(".")
    if layer != model.classifier_name:
        return f"backbone.{name}"
    if model.head == "linear":
        return f"classifier.fc.{rest}"
    return "classifier.weight" if rest == "weight" else None


_REAT_LAYERS = {"conv1": "0", "bn1": "1", "conv2": "3", "bn2": "4"}


def _in_reat(name: str, model: Classifier) -> str:
    """GuanlinLee/REAT's ResNet: sequences in place of named layers (its WideResNet has our names)."""
    parts = name.split(".")
    if parts[0] in ("conv1", "bn1"):
        return _joined("conv1", _REAT_LAYERS[parts[0]], *parts[1:])
    if parts[0] == model.classifier_name:
        return _joined("fc", *parts[1:])
    if len(parts) > 3 and parts[2] in _REAT_LAYERS:
        return _joined(*parts[:2], "residual_function", _REAT_LAYERS[parts[2]], *parts[3:])
    return name


def strays(found: Contents, place: str, others: Iterable[str], known: Collection[str]) -> list[str]:
    """Tensors in the mapping of the weights at ``place`` that are not known: parts of a larger network.

    ``others`` are the places of other sets of weights. What belongs to a wrapper that averages is none.
    """
    mappings = {found.mapping[name] for name in known}
    return [
        name
        for name in found.tensors
        if found.mapping[name] in mappings
        and name not in known
        and not name.startswith(tuple(others))
        and name.rpartition(".")[2] not in _COUNTS
    ]
