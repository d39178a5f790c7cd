"""The mode of a model during an attack, restored afterwards."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn


def _eval(model: nn.Module) -> None:
    model.eval()


def _train(model: nn.Module) -> None:
    model.train()


def _train_frozen_stats(model: nn.Module) -> None:
    model.train()
    _stop_tracking(model)


MODES: dict[str, Callable[[nn.Module], None]] = {
    "eval": _eval,
    "train": _train,
    "train_frozen_stats": _train_frozen_stats,
}
"""``eval``: running statistics. ``train``: batch statistics, and by its nature the running statistics move
with every gradient (Rice's PGD-AT, AWP, ARD). ``train_frozen_stats``: batch statistics, but those stay.
"""


@contextmanager
def attack_mode(model: nn.Module, mode: str) -> Iterator[None]:
    """A context in which ``model`` is in ``mode`` and its parameters are frozen.

    Restores both on leaving, also after an exception, and the flag of every submodule for itself: a batch norm frozen
    on purpose stays frozen.
    """
    flags = [(module, module.training) for module in model.modules()]
    tracking = _tracking(model)
    trained = [p for p in model.parameters() if p.requires_grad and p.is_leaf]
    try:
        MODES[mode](model)
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module, training in flags:
            module.training = training
        _resume_tracking(tracking)


@contextmanager
def frozen_batch_norm_statistics(model: nn.Module) -> Iterator[None]:
    """A context in which batch norm in training mode normalises by the batch and keeps its running statistics."""
    tracking = _tracking(model)
    try:
        _stop_tracking(model)
        yield
    finally:
        _resume_tracking(tracking)


def _tracking(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if getattr(module, "track_running_stats", False)]


# A norm layer in training mode that does not track hands no buffer to its kernel, so the running statistics
# stay bit-identical without a copy. setattr, because nn.Module types attributes as tensors or modules.
def _stop_tracking(model: nn.Module) -> None:
    for module in _tracking(model):
        setattr(module, "track_running_stats", False)  # noqa: B010


def _resume_tracking(modules: list[nn.Module]) -> None:
    for module in modules:
        setattr(module, "track_running_stats", True)  # noqa: B010
