"""Starting a run from the weights of a saved model (``model.weights``), as fine-tuning does."""

from collections.abc import Sequence

from ltat.config import RunConfig
from ltat.errors import LtatError
from ltat.models import Classifier, load_weights, read_card
from ltat.models.classes import match_classes


def start_from(model: Classifier, config: RunConfig, class_names: Sequence[str]) -> None:
    """Load the weights ``model.weights``, if set, into ``model``.

    Raises:
        LtatError: the file cannot be read, or its network differs from ``model`` or has other classes.
    """
    path = config.model.weights
    if path is None:
        return
    card = read_card(path)
    normalized = "none" if card.normalize is None else "train"
    _require_same("architecture", "model.name", path, card.name, model.name)
    _require_same("last layer", "the method", path, card.head, model.head)
    _require_same("number of classes", "the data", path, card.num_classes, model.num_classes)
    _require_same("number of channels", "the data", path, card.in_channels, model.in_channels)
    _require_same("normalisation", "model.normalize", path, normalized, config.model.normalize)
    constants = {name: value.clone() for name, value in model.classifier.named_buffers()}
    load_weights(model, path)
    model.class_names = card.class_names
    by_name, whose = config.model.classes_by_name, f"model.weights={path}"
    match_classes(model, class_names, "model.classes_by_name", by_name, whose)
    for name, value in model.classifier.named_buffers():
        if not value.equal(constants[name]):
            raise LtatError(
                f"model.weights={path}: the constant {name} of its last layer differs from that of this run; "
                "use the settings and the data it was trained with"
            )


def _require_same(what: str, where: str, path: str, saved: object, wanted: object) -> None:
    if saved != wanted:
        raise LtatError(
            f"model.weights={path}: its {what} is {saved} and {where} requires {wanted}; name other weights"
        )
