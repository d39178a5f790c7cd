"""The losses that the training attack ascends: functions of (logits, labels, adversarial images), per image."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ltat.attacks import Objective, cross_entropy
from ltat.data import Batch
from ltat.errors import LtatError
from ltat.methods.divergences import kl_divergence

Network = Callable[[Tensor], Tensor]
"""Images [B, ch, H, W] → logits [B, C]."""

Builder = Callable[[Network, Batch, Tensor, "nn.Module | None"], Objective]


def _plain(model: Network, batch: Batch, log_prior: Tensor, teacher: nn.Module | None) -> Objective:
    del model, batch, log_prior, teacher
    return cross_entropy


def _balanced_softmax(model: Network, batch: Batch, log_prior: Tensor, teacher: nn.Module | None) -> Objective:
    del model, batch, teacher
    return partial(_with_prior, log_prior=log_prior)


def _own_clean_prediction(model: Network, batch: Batch, log_prior: Tensor, teacher: nn.Module | None) -> Objective:
    del log_prior, teacher
    with torch.no_grad():
        target = model(batch.images)
    return partial(_from_target, target=target)


def _teacher_on_clean(model: Network, batch: Batch, log_prior: Tensor, teacher: nn.Module | None) -> Objective:
    del model, log_prior
    assert teacher is not None
    with torch.no_grad():
        target = teacher(batch.images).float()
    return partial(_from_target, target=target)


def _teacher_on_adversarial(model: Network, batch: Batch, log_prior: Tensor, teacher: nn.Module | None) -> Objective:
    del model, batch, log_prior
    assert teacher is not None
    return partial(_from_teacher, teacher=teacher)


def _with_prior(logits: Tensor, labels: Tensor, x_adv: Tensor, log_prior: Tensor) -> Tensor:
    return cross_entropy(logits + log_prior, labels, x_adv)


def _from_target(logits: Tensor, labels: Tensor, x_adv: Tensor, target: Tensor) -> Tensor:
    return kl_divergence(target, logits)


def _from_teacher(logits: Tensor, labels: Tensor, x_adv: Tensor, teacher: nn.Module) -> Tensor:
    return kl_divergence(teacher(x_adv).float(), logits)


INNER_LOSSES: dict[str, Builder] = {
    "ce": _plain,
    "bsl": _balanced_softmax,
    "kl-self": _own_clean_prediction,  # TRADES: sum KL(f(x) || f(x')), gradient with respect to x' only
    "kl-clean": _teacher_on_clean,  # RSLAD: sum KL(T(x) || S(x'))
    "kl-adv": _teacher_on_adversarial,  # AdaAD: sum KL(T(x') || S(x')), gradient through both networks
}


NEED_TEACHER = {"kl-clean", "kl-adv"}


def check_inner_loss(name: str, start: str, teacher: nn.Module | None) -> None:
    """Check that :func:`inner_objective` can build the objective and that it has a gradient at ``start``.

    Raises:
        LtatError: an unknown name, a missing teacher, or a divergence of the network from itself that starts at its
            minimum.
    """
    if name not in INNER_LOSSES:
        raise LtatError(f"attack.loss={name} is unknown; choose one of {', '.join(INNER_LOSSES)}")
    if name in NEED_TEACHER and teacher is None:
        raise LtatError(f"attack.loss={name} compares with a teacher and this method has none; use attack.loss=ce")
    if name == "kl-self" and start == "zero":
        raise LtatError(
            "attack.loss=kl-self has no gradient at x, the start of attack.start=zero; use attack.start=gauss"
        )


def inner_objective(name: str, model: Network, batch: Batch, log_prior: Tensor, teacher: nn.Module | None) -> Objective:
    """The objective called ``name`` in ``attack.loss``, for one batch.

    Args:
        name: a key of :data:`INNER_LOSSES` that :func:`check_inner_loss` accepts.
        model: the network under attack, in the mode of the attack.
        batch: the clean batch under attack.
        log_prior: tau * log n_c, [C].
        teacher: the frozen teacher, for the two objectives that use it.
    """
    return INNER_LOSSES[name](model, batch, log_prior, teacher)
