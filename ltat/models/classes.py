"""Whether a network and a data set mean the same by class 3, and how to make them."""

from collections.abc import Sequence

from torch import nn

from ltat.errors import LtatError
from ltat.models.base import Classifier

_SHOWN = 10  # of each list of names
_LONGEST = 40  # characters of a name


def check_classes(model: Classifier, names: Sequence[str], remedy: str, whose: str = "the model") -> None:
    """Refuse a network whose classes are not those of the data, as far as both have names.

    Names that only number the classes ("0", "1", …) are not compared.

    Args:
        model: a network, as ``load_model`` gives it.
        names: of the data's classes, in the order of their labels.
        remedy: what maps the classes by name, for the error.
        whose: the network's description, for the error.

    Raises:
        LtatError: other names, or the same in another order; with both lists.
    """
    own, data = _known(model.class_names), _known(names)
    if own and data and own != data:
        raise LtatError(
            f"{whose} has the classes {_listed(own, data)} and the data {_listed(data, own)}; "
            f"take the data it was trained on, correct class_names on its card, or map them by name with {remedy}"
        )


def order_classes(model: Classifier, names: Sequence[str]) -> list[int]:
    """Give the network the outputs ``names``, in this order, by permuting or selecting rows of its last layer.

    The network itself is changed, so that attacks see the same outputs as the evaluation.

    Args:
        model: a network with class names, as ``load_model`` gives it.
        names: of the wanted classes, each one of the network's.

    Returns:
        For each name the number that its class had before.

    Raises:
        LtatError: names are not known or occur twice, or the network has no class of that name.
    """
    own, wanted = model.class_names, tuple(names)
    if own == wanted and _known(own):
        return list(range(len(own)))
    for whose, known in (("the model", own), ("the data", wanted)):
        if not _known(known):
            raise LtatError(f"{whose} has no class names to map by; leave the mapping out")
        if len(set(known)) < len(known):
            twice = next(name for name in known if known.count(name) > 1)
            raise LtatError(f"two classes of {whose} are called {_shown(twice)}; give each class another name")
    missing = [name for name in wanted if name not in own]
    if missing:
        raise LtatError(
            f"the model has no class {_shown(missing[0])} (it has {_listed(own, wanted)}); "
            "leave that class out of the data, or take another model"
        )
    rows = [own.index(name) for name in wanted]
    _take_rows(model, rows)
    model.class_names, model.num_classes = wanted, len(wanted)
    return rows


def match_classes(model: Classifier, names: Sequence[str], setting: str, by_name: bool, whose: str) -> None:
    """:func:`order_classes` where the setting asks for it, else :func:`check_classes`."""
    if by_name:
        order_classes(model, names)
    else:
        check_classes(model, names, f"{setting}=true", whose)


def _take_rows(model: Classifier, rows: list[int]) -> None:
    layer, before = model.classifier, model.num_classes
    for name, value in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
        if value.ndim and len(value) == before:
            taken = value.detach()[rows].clone()
            setattr(layer, name, nn.Parameter(taken, value.requires_grad) if isinstance(value, nn.Parameter) else taken)
    if isinstance(layer, nn.Linear):
        layer.out_features = len(rows)


def _known(names: Sequence[str]) -> tuple[str, ...]:
    """The names, or none where they only number the classes."""
    return () if list(names) == [str(number) for number in range(len(names))] else tuple(names)


def _listed(names: tuple[str, ...], other: tuple[str, ...]) -> str:
    """The names; of many, those from the first on that differs from the other list."""
    differing = (i for i, (one, two) in enumerate(zip(names, other, strict=False)) if one != two)
    first = 0 if len(names) <= _SHOWN else next(differing, min(len(names) - 1, len(other)))
    shown = ", ".join(map(_shown, names[first : first + _SHOWN]))
    before, after = "… " if first else "", " …" if first + _SHOWN < len(names) else ""
    number = f" (from class {first} of {len(names)})" if before or after else ""
    return f"{before}{shown}{after}{number}"


def _shown(name: str) -> str:
    return repr(name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…")
