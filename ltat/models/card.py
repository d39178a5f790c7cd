"""A saved model: ``NAME.safetensors`` (weights) and ``NAME.json`` (a card that describes them)."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from ltat.errors import LtatError
from ltat.files import atomic_write_all, exists, read_bytes
from ltat.memory import free_memory
from ltat.models.base import Classifier, Normalization, moved, same_normalization
from ltat.models.heads import put_head
from ltat.models.registry import MODELS, build_model

CARD_FORMAT = 1
_SUFFIX = ".safetensors"
Number = Annotated[int, Field(lt=2**63)]  # build_model checks which make a network
_LARGEST_CARD = 1 << 26  # bytes; a million class names are far less
TRIES, PAUSE = 5, 0.05  # to read a card and its weights as one; seconds between two tries
_NORMALIZE = ("normalize.mean", "normalize.std")  # in the file only, so that no plain network takes it without a word


@dataclass(frozen=True)
class ModelCard:
    """What stands in the JSON file beside the weights.

    Attributes:
        format: version of this card's layout.
        name: key in ``MODELS``; the architecture is built from it, never read from the weights.
        num_classes: outputs.
        in_channels: channels of the images.
        normalize: (mean, std) per channel applied inside the model, or None.
        class_names: one per class, or empty.
        sha256: of the weights file (hex).
        head: key of the last layer in ``HEADS``.
        extra: anything else worth keeping: dataset, method, epoch, metrics, training counts.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    format: Number
    name: str
    num_classes: Number
    in_channels: Number
    normalize: tuple[tuple[float, ...], tuple[float, ...]] | None
    class_names: tuple[str, ...]
    sha256: str
    head: str = "linear"
    extra: dict[str, Any] = field(default_factory=dict)


def save_model(
    model: Classifier, path: str | Path, *, extra: Mapping[str, Any], class_names: Sequence[str] = ()
) -> None:
    """Write ``path``.safetensors and ``path``.json; each is whole at any moment, and nothing is pickled.

    Args:
        model: built by ``build_model``.
        path: with or without the ``.safetensors`` suffix.
        extra: JSON values (NumPy numbers and arrays are turned into plain ones) for the card.
        class_names: one per class; the model's own where left out.

    Raises:
        LtatError: a model that is not in ``MODELS``, another number of names than classes, values JSON cannot hold,
            or an unwritable place.
    """
    if getattr(model, "name", None) not in MODELS:
        raise LtatError(
            f"a {type(model).__name__} cannot be saved by name; build the model with build_model ({', '.join(MODELS)})"
        )
    weights_path, card_path = _paths(path)
    names = tuple(class_names) or model.class_names
    if names and len(names) != model.num_classes:
        raise LtatError(f"{len(names)} class names for {model.num_classes} classes; give one per class, or none")
    weights = _serialize(model)
    card = ModelCard(
        format=CARD_FORMAT,
        name=model.name,
        num_classes=model.num_classes,
        in_channels=model.in_channels,
        normalize=_plain_normalization(model),
        class_names=names,
        sha256=hashlib.sha256(weights).hexdigest(),
        head=model.head,
        extra=dict(extra),
    )
    atomic_write_all({weights_path: weights, card_path: _to_json(card).encode()})


def load_model(path: str | Path, *, device: torch.device | str = "cpu") -> Classifier:
    """Read a model saved by ``save_model``, in evaluation mode.

    The checksum, the names and the shapes are compared before anything of the file is used, and no code
    from it is ever executed.

    Args:
        path: with or without the ``.safetensors`` suffix.
        device: where the model goes.

    Raises:
        LtatError: a missing, truncated, altered or foreign file.
    """
    weights_path, _ = _paths(path)
    card, tensors = _read_both(path)
    with torch.device("meta"):  # shapes only: a card cannot make us allocate a giant
        skeleton = _build(card)
    check_state(skeleton, tensors, str(weights_path))
    model = _build(card)
    model.load_state_dict(tensors)
    model.class_names = card.class_names
    return moved(model, device).eval()


def load_weights(model: torch.nn.Module, path: str | Path) -> None:
    """Put the weights saved at ``path`` into ``model``, which may be more than its card's plain architecture.

    Raises:
        LtatError: as :func:`load_model`, or the weights are of another network, or of one that normalises its images
            otherwise.
    """
    weights_path, _ = _paths(path)
    card, tensors = _read_both(path)
    _check_normalization(model, card, weights_path)
    check_state(model, tensors, str(weights_path))
    model.load_state_dict(tensors)


def read_card(path: str | Path) -> ModelCard:
    """The card of a saved model, checked for its layout but not against the weights.

    Raises:
        LtatError: a missing or damaged card, or one of another format version.
    """
    weights_path, card_path = _paths(path)
    if not exists(card_path) and not exists(weights_path):
        raise LtatError(
            f"there is no saved model {weights_path}; name a .safetensors file with its .json card beside it"
        )
    text = _read(card_path, _LARGEST_CARD).decode("utf-8-sig", errors="replace")
    try:
        card = TypeAdapter(ModelCard).validate_python(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise LtatError(f"{card_path} is not a model card ({reason}); save the model again") from error
    except (ValueError, RecursionError) as error:
        raise LtatError(f"{card_path} is not a model card ({error}); save the model again") from error
    if card.format != CARD_FORMAT:
        raise LtatError(f"{card_path} has card format {card.format}, this version reads {CARD_FORMAT}; update ltat")
    return card


def check_state(model: torch.nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors whose names, shapes or kinds (floating or not) differ from the model's state.

    Raises:
        LtatError: naming the first difference.
    """
    expected = model.state_dict()
    for key in sorted(expected.keys() - tensors.keys()):
        raise LtatError(f"{source} lacks {key!r}; it was saved from another architecture")
    for key in sorted(tensors.keys() - expected.keys()):
        raise LtatError(f"{source} holds an unexpected {key!r}; it was saved from another architecture")
    for key, want in expected.items():
        tensor = tensors[key]
        if tensor.shape != want.shape or tensor.is_floating_point() != want.is_floating_point():
            raise LtatError(
                f"{source}: {key!r} is {tensor.dtype} {tuple(tensor.shape)} where the model has "
                f"{want.dtype} {tuple(want.shape)}; it was saved from another architecture or class count"
            )


def saved_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, with the normalisation that a card beside it names.

    Raises:
        LtatError: a missing or damaged file, or one that its card does not vouch for.
    """
    if not exists(path.with_suffix(".json")):
        return _parse_weights(_read(path, free_memory()), path)
    card, tensors = _read_both(path)
    return tensors if card.normalize is None else tensors | _normalization_tensors(card.normalize)


def _build(card: ModelCard) -> Classifier:
    with torch.random.fork_rng(devices=[]):  # initial weights are overwritten and must not cost the caller's numbers
        model = build_model(
            card.name, num_classes=card.num_classes, in_channels=card.in_channels, normalize=card.normalize
        )
        if card.head != model.head:
            put_head(model, card.head)
        return model


def _paths(path: str | Path) -> tuple[Path, Path]:
    path = Path(path)
    stem = path.name.removesuffix(_SUFFIX)
    if not stem:
        raise LtatError(f"{str(path)!r} names no model file; give a path such as runs/first/best")
    return path.with_name(stem + _SUFFIX), path.with_name(stem + ".json")


def _serialize(model: Classifier) -> bytes:
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    constants = {} if model.normalization is None else _normalization_tensors(model.normalization)
    return safetensors.torch.save(state | constants)


def _normalization_tensors(normalize: Normalization) -> dict[str, Tensor]:
    return {key: torch.tensor(tuple(values)) for key, values in zip(_NORMALIZE, normalize, strict=True)}


def _check_normalization(model: torch.nn.Module, card: ModelCard, path: Path) -> None:
    own = model.normalization if isinstance(model, Classifier) else None
    if not same_normalization(own, card.normalize):
        raise LtatError(
            f"{path} normalises its images by {card.normalize} and the {type(model).__name__} by {own}; "
            "build it with normalize=read_card(path).normalize, or use load_model"
        )


def _plain_normalization(model: Classifier) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    if model.normalization is None:
        return None
    mean, std = model.normalization
    return tuple(map(float, mean)), tuple(map(float, std))


def _to_json(card: ModelCard) -> str:
    try:
        return json.dumps(asdict(card), indent=2, default=lambda value: value.tolist()) + "\n"
    except (TypeError, AttributeError, ValueError) as error:
        raise LtatError(f"extra cannot be written as JSON ({error}); keep numbers, strings and lists") from error


def _read_both(path: str | Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """A card and the tensors of its network, tried again while a training puts new ones in their places."""
    weights_path, _ = _paths(path)
    for _ in range(TRIES):
        card, data = read_card(path), _read(weights_path, free_memory())
        if hashlib.sha256(data).hexdigest() == card.sha256:
            break
        time.sleep(PAUSE)  # two renames replace the two files
    return card, _checked_weights(data, weights_path, card)


def _checked_weights(data: bytes, path: Path, card: ModelCard) -> dict[str, Tensor]:
    """The tensors of the network, without those of its normalisation, which must be the card's."""
    if hashlib.sha256(data).hexdigest() != card.sha256:
        raise LtatError(
            f"{path} does not have the checksum its card names, so it was damaged or replaced; copy both files again"
        )
    tensors = _parse_weights(data, path)
    stored = [tensors.pop(key).flatten().tolist() for key in _NORMALIZE if key in tensors]
    if stored and not same_normalization((stored[0], stored[-1]), card.normalize):
        raise LtatError(f"{path} and its card differ in the normalisation of images; copy both files again")
    return tensors


def _parse_weights(data: bytes, path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise LtatError(f"{path} is not a safetensors file ({error}); save the model again") from error


def _read(path: Path, largest: int) -> bytes:
    try:
        return read_bytes(path, largest)
    except OSError as error:
        raise LtatError(
            f"{path} cannot be read ({error.strerror}); a saved model is NAME.safetensors with NAME.json beside it"
        ) from error
