"""Whether the ``state_dict`` of a method has what it needs to go on in the middle of an epoch.

A method that counts within an epoch and saves the result alone would go on with the counts of a part of the epoch, and
nothing would tell. So its state is tried out after the step that is rehearsed.
"""

import copy
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only

from ltat.engine.self_check import same_bits
from ltat.errors import LtatError
from ltat.methods import Method

PLAIN = (Tensor, bool, int, float, str, bytes, type(None))


def plain_attributes(method: Method) -> dict[str, Any]:
    """A copy of the attributes that are tensors, numbers, strings or containers of them."""
    return {name: _copied(value) for name, value in vars(method).items() if _is_plain(value)}


def lost_within_epoch(method: Method, state: dict[str, Any], before: dict[str, Any], epoch: int) -> str | None:
    """The name of an attribute that a run resumed now would not have as it is; ``None`` where there is none.

    Args:
        method: after a step of ``epoch``; it does not change.
        state: what its ``state_dict`` has now, as it comes from a file.
        before: the result of :func:`plain_attributes` before the first epoch.
        epoch: counted from 1.

    Raises:
        LtatError: the method cannot load its state.
    """
    now = plain_attributes(method)
    _replace_plain(method, before)
    try:
        method.load_state_dict(copy.deepcopy(state))
        method.begin_epoch(epoch)
        method.load_state_dict(state)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        name = type(method).__name__
        raise LtatError(
            f"{name} cannot go on from its own state_dict() within an epoch ({reason}); correct it"
        ) from None
    resumed = plain_attributes(method)
    _replace_plain(method, now)
    names = sorted(now.keys() | resumed.keys())
    return next((name for name in names if not _same(now.get(name), resumed.get(name))), None)


def _replace_plain(method: Method, attributes: dict[str, Any]) -> None:
    for name in plain_attributes(method):
        delattr(method, name)
    kept = set(vars(method))  # what a step has made of an attribute that was None, such as a network, stays
    vars(method).update({name: _copied(value) for name, value in attributes.items() if name not in kept})


def _copied(value: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), value)


def _is_plain(value: object) -> bool:
    return all(isinstance(leaf, PLAIN) for leaf in tree_flatten(value)[0])


def _same(one: object, other: object) -> bool:
    (parts, shape), (others, other_shape) = tree_flatten(one), tree_flatten(other)
    return shape == other_shape and all(map(_equal, parts, others))


def _equal(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.device == other.device and same_bits(one, other)
    return type(one) is type(other) and (one is other or one == other)
