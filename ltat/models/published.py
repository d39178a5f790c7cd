"""Weights published by other projects, as plain PyTorch state dicts."""

from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltat.errors import LtatError
from ltat.files import require_file
from ltat.memory import require_memory_for
from ltat.models.base import Classifier, Normalization, Normalize, same_normalization
from ltat.models.card import check_state, saved_tensors
from ltat.models.checkpoint_names import Contents, Dialect, closest, contents, copies, strays

_NORMALIZATIONS = (("mu", "sigma"), ("mean", "std"))  # per-channel buffers


def load_published(model: Classifier, path: str | Path, *, weights: str | None = None) -> Classifier:
    """Load a published ``.pt``/``.pth``/``.pkl`` or ``.safetensors`` file into a built model, in place.

    The weights may lie anywhere in a checkpoint and in any wrapper (``DataParallel``, ``torch.compile``,
    ``AveragedModel`` and the like): they are found by the model's own names, or by the names of RoBal's and REAT's
    code. Unused blocks of old WideResNets are dropped, and files from before batch norm counted its batches admitted.
    Where the file holds the mean and deviation its authors normalise by, the model takes them over. No code from the
    file is ever executed.

    RoBal's cosine layer goes into a model with ``put_head(model, "cosine")``. Its constants are not in such a file:
    the head keeps its ``gamma``, ``scale`` and ``offset``.

    Args:
        model: built with the file's class count and, where the authors normalise by constants in their code,
            their normalisation.
        path: the file.
        weights: where in the file the weights lie, such as ``"model_ema"``; needed where it holds several sets.

    Returns:
        ``model``.

    Raises:
        LtatError: an unreadable file, one that needs code to be read, several sets of weights of which none is
            chosen, or weights of another architecture or normalisation.
    """
    path = Path(path)
    found = contents(saved_tensors(path) if path.suffix == ".safetensors" and path.is_file() else _read(path))
    if not found.tensors:
        raise LtatError(f"{path} holds no state dict (a mapping of names to tensors); save model.state_dict()")
    sets = copies(model, found)
    place = _chosen(sets, found, weights, path)
    state, normalize = _state(model, found, sets, place, path)
    check_state(model, state, str(path))
    model.load_state_dict(state)
    if normalize is not None and model.normalization is None:
        model.normalization, model.normalize = normalize, Normalize(*normalize, model.in_channels).to(_device(model))
    return model


def _chosen(sets: Mapping[str, Dialect], found: Contents, weights: str | None, path: Path) -> str | None:
    """The place of the weights to load; None where the file holds no whole set."""
    names = {place.removesuffix("."): place for place in sets}
    if weights is not None:
        names = {name: place for name, place in names.items() if f"{name}.".startswith(f"{weights}.")}
    if len(names) > 1 or (names and found.unnamed and weights is None):
        unnamed = "".join(f", and {name} without names, which cannot be loaded" for name in found.unnamed)
        raise LtatError(
            f"{path} holds several sets of weights ({', '.join(map(repr, names))}{unnamed}); "
            f"choose one with load_published(model, path, weights={next(iter(names))!r})"
        )
    if weights is not None and not names:
        there = ", ".join(repr(place.removesuffix(".")) for place in sets) or "none for this model"
        raise LtatError(f"{path} holds no set of weights called {weights!r} (there is {there}); correct it")
    return next(iter(names.values()), None)


def _state(
    model: Classifier, found: Contents, sets: Mapping[str, Dialect], place: str | None, path: Path
) -> tuple[dict[str, Tensor], Normalization | None]:
    """The tensors under the model's own names, and the normalisation that lies beside them."""
    if place is None:
        place, dialect = closest(model, found)
        _refuse_other_head(model, found, path)
    else:
        dialect = sets[place]
    stored = {own: place + theirs for own, theirs in dialect.names.items() if place + theirs in found.tensors}
    normalize, constants = _normalization(found, place, model, path)
    unused = [name for name in found.tensors if name.startswith(tuple(place + start for start in dialect.unused))]
    _require_zero(found, [place + name for name in dialect.zero], path)
    known = {*stored.values(), *constants, *unused, *(place + name for name in dialect.zero)}
    for name in strays(found, place, [other for other in sets if other != place], known & found.tensors.keys()):
        raise LtatError(f"{path} holds an unexpected {name!r}; it was saved from another architecture")
    kept = {key: value for key, value in model.state_dict().items() if _may_be_kept(key, dialect)}
    return kept | {own: found.tensors[name] for own, name in stored.items()}, normalize


def _may_be_kept(key: str, dialect: Dialect) -> bool:
    # Old files do not count batches; others' do not hold the constants of a cosine layer.
    return key.endswith("num_batches_tracked") or key not in dialect.names


def _refuse_other_head(model: Classifier, found: Contents, path: Path) -> None:
    wraps = [name.removesuffix("classifier.weight") for name in found.tensors if name.endswith("classifier.weight")]
    robal = any(name.startswith(f"{wrap}backbone.") for wrap in wraps for name in found.tensors)
    if robal and model.head == "linear":
        raise LtatError(
            f"{path} has a cosine layer and the model a linear one; call put_head(model, 'cosine') first, "
            "and set its gamma, scale and offset"
        )


def _require_zero(found: Contents, names: list[str], path: Path) -> None:
    for name in names:
        if name in found.tensors and found.tensors[name].any():
            raise LtatError(f"{path}: {name!r} is not zero and the model has no such bias; it cannot be loaded")


def _normalization(
    found: Contents, place: str, model: Classifier, path: Path
) -> tuple[Normalization | None, tuple[str, ...]]:
    """The mean and deviation nearest to the weights, and their names; refused where the model has others."""
    pairs = [
        (name, name.removesuffix(mean) + std)
        for mean, std in _NORMALIZATIONS
        for name in found.tensors
        if name.rpartition(".")[2] == mean and name.removesuffix(mean) + std in found.tensors
    ]
    if not pairs:
        return None, ()
    nearest = max(pairs, key=lambda pair: _shared(pair[0], place))
    mean, std = (found.tensors[name].flatten().tolist() for name in nearest)
    Normalize(mean, std, model.in_channels)  # refuses what does not fit
    if model.normalization is not None and not same_normalization(model.normalization, (mean, std)):
        raise LtatError(
            f"{path} normalises by mean {mean} and std {std}, the model by {model.normalization}; "
            "build the model without a normalisation"
        )
    return (mean, std), tuple(name for pair in pairs for name in pair)


def _shared(one: str, other: str) -> int:
    """Number of leading characters in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _device(model: Classifier) -> torch.device:
    return next(model.parameters()).device


def _read(path: Path) -> Any:
    try:
        require_file(path)
    except OSError as error:
        raise LtatError(f"{path} cannot be read ({error.strerror}); check the path or download it first") from None
    with open(path, "rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise LtatError(f"{path} is a web page, not a checkpoint; the download asked for a click, so fetch it by hand")
    try:
        require_memory_for(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except LtatError:
        raise
    except Exception as error:  # zip, pickle and torch each have their own exceptions for a damaged file
        reason = str(error).partition("\n")[0]
        raise LtatError(
            f"{path} is not a plain state dict that loads without running code ({reason}); "
            "save only the tensors: torch.save(model.state_dict(), file)"
        ) from error
