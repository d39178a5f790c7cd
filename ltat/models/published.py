"""Weights published by other projects, as plain PyTorch state dicts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltat.errors import LtatError
from ltat.models.base import Classifier, Normalization, Normalize
from ltat.models.card import check_state

_NESTED_KEYS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "model.")
_NORMALIZATIONS = (("mu", "sigma"), ("mean", "std"), ("normalize.mean", "normalize.std"))  # per-channel buffers
_UNUSED = "sub_block1."  # registered by the TRADES WideResNet, never used in its forward pass


def load_published(model: Classifier, path: str | Path) -> Classifier:
    """Load a published ``.pt``/``.pth`` state dict into a built model, in place.

    Takes a state dict or one nested in a checkpoint, removes wrappers' name prefixes, drops WideResNet's
    unused block, and admits files from before batch norm counted its batches. Where the file holds the mean and
    deviation its authors normalise by, the model takes them over. No code from the file is ever executed.

    Args:
        model: built with the file's class count and, where the authors normalise by constants in their code,
            their normalisation.
        path: the file.

    Returns:
        ``model``.

    Raises:
        LtatError: an unreadable file, one that needs code to be read, or weights of another architecture
            or normalisation.
    """
    state = published_state(model, _tensors(_read(Path(path)), path))
    normalize = _take_normalization(state, model, path)
    check_state(model, state, str(path))
    model.load_state_dict(state)
    if normalize is not None and model.normalization is None:
        model.normalization, model.normalize = normalize, Normalize(*normalize, model.in_channels).to(_device(model))
    return model


def _take_normalization(state: dict[str, Tensor], model: Classifier, path: str | Path) -> Normalization | None:
    """Removes mean and deviation from the state; refused where the model already normalises by others."""
    for names in _NORMALIZATIONS:
        if all(name in state for name in names):
            mean, std = (state.pop(name).flatten().tolist() for name in names)
            Normalize(mean, std, model.in_channels)  # refuses what does not fit
            if model.normalization is not None and not _equal(model.normalization, (mean, std)):
                raise LtatError(
                    f"{path} normalises by mean {mean} and std {std}, the model by {model.normalization}; "
                    "build the model without a normalisation"
                )
            return mean, std
    return None


def _equal(one: Normalization, other: Normalization) -> bool:
    return all(torch.allclose(torch.tensor(a), torch.tensor(b)) for a, b in zip(one, other, strict=True))


def _device(model: Classifier) -> torch.device:
    return next(model.parameters()).device


def published_state(model: Classifier, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the model's own names, without what it does not use."""
    state = {_plain_name(key): value for key, value in tensors.items()}
    state = {key: value for key, value in state.items() if not key.startswith(_UNUSED)}
    counters = {key: value for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")}
    return counters | state


def _read(path: Path) -> Any:
    if not path.is_file():
        raise LtatError(f"there is no file {path}; check the path or download it first")
    with open(path, "rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html")):
        raise LtatError(f"{path} is a web page, not a checkpoint; the download asked for a click, so fetch it by hand")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each have their own exceptions for a damaged file
        reason = str(error).partition("\n")[0]
        raise LtatError(
            f"{path} is not a plain state dict that loads without running code ({reason}); "
            "save only the tensors: torch.save(model.state_dict(), file)"
        ) from error


def _tensors(content: Any, path: str | Path) -> Mapping[str, Tensor]:
    for key in _NESTED_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(torch.is_tensor(v) for v in content.values()):
        raise LtatError(f"{path} holds no state dict (a mapping of names to tensors); save model.state_dict()")
    return content


def _plain_name(key: str) -> str:
    while key.startswith(_PREFIXES):
        key = key.partition(".")[2]
    return key
