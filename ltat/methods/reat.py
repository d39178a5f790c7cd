"""REAT (Li et al., arXiv 2307.10205): a re-balanced training attack, and a term on the features of tail classes.

Attack: PGD on cross-entropy weighted by class (RBL). With n_c images of class c, and A_c adversarial images that the
network classified as c in the previous epoch (n_c in the first),

    w_c = 1 / (E_c + 1e-5), scaled to sum_c w_c = C,    E_c = (1 - b_c^A_c) / (1 - b_c),    b_c = (n_c - 1) / n_c

The weights have an effect where batch norm couples the images of a batch: in ``attack.mode=train`` and
``train_frozen_stats``. In evaluation mode, the published one, they change no image and are left out.

Loss:

    L = mean CE( f(x') + tau * log n, y ) + lambda * TAIL,    TAIL = mean over the tail images i of the batch of t_i

``loss.cls`` replaces the first term by another loss.

With h the penultimate features on x', K_ij = 1/d * KL( softmax(h_i), no gradient || softmax(h_j) ) for d features, and
S_ij = s_ij * (o_{y_i} + o_{y_j}), where o_c = (n_c / N)^(-1/2) and s_ij = -1 for images of one class, else +1:

    t_i = mean_j K_ij * mean_j S_ij    (``reat.tail_impl=code``: the reference averages K over j before weighting it)
    t_i = mean_j ( K_ij * S_ij )       (``per_pair``: the term as described)

The means run over the whole batch, i itself included. Minimising with these signs draws the features of different
classes together, the opposite of the paper's aim; ``reat.tail_sign=intended`` reverses s_ij.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltat.attacks import Objective
from ltat.config import AttackSection, LossSection, ScheduleSection, Section, TrainSection
from ltat.config.sections import NonNegative
from ltat.engine.network import features_and_logits
from ltat.errors import LtatError
from ltat.methods.classification import ClassificationConfig, ClassificationMethod
from ltat.methods.step import LossTerms, Step


class ReatSection(Section):
    """REAT's TAIL term (Li et al., 2023)."""

    tail: NonNegative = 1.0
    """λ, the weight of the term, 0 or more."""
    tail_impl: Literal["code", "per_pair"] = "code"
    """`code` (the divergence is averaged before it is weighted, as in the reference code) or `per_pair`."""
    tail_sign: Literal["code", "intended"] = "code"
    """Signs of the pairs: `code` (the reference code's) or `intended` (the paper's aim)."""
    tail_set: Literal["index", "count"] = "index"
    """The tail: `index` (the last third of the labels, as in the reference code) or `count` (as many of the rarest)."""


class ReatConfig(ClassificationConfig):
    """The published settings: 80 epochs, x0.1 after 60 and 75; a uniform start."""

    method: Literal["reat"] = "reat"
    attack: AttackSection = AttackSection(start="uniform")
    schedule: ScheduleSection = ScheduleSection(milestones=(0.75, 0.9375), milestone_base=0)
    train: TrainSection = TrainSection(epochs=80)
    loss: LossSection = LossSection(cls="bsl")
    reat: ReatSection = ReatSection()


class Reat(ClassificationMethod):
    """Balanced softmax plus TAIL on images from the re-balanced attack.

    ``predicted`` [C] is A_c, ``None`` in the first epoch, and ``counting`` [C] what will be A_c in the next; both are
    part of the saved state.
    """

    Config = ReatConfig
    config: ReatConfig

    def __init__(self, config: ReatConfig, class_counts: Tensor, teacher: nn.Module | None = None) -> None:
        super().__init__(config, class_counts, teacher)
        self.predicted: Tensor | None = None
        self.counting = torch.zeros_like(class_counts)
        if config.attack.mode != "eval" and config.train.precision == "fp16":
            raise LtatError(
                f"the class weights of reat underflow in an fp16 attack in mode {config.attack.mode}; "
                "use --precision bf16 or attack.mode=eval"
            )
        if config.reat.tail and not self.tail_classes(class_counts).any():
            raise LtatError(f"{len(class_counts)} classes leave the tail of reat empty; set reat.tail=0")

    def tail_classes(self, class_counts: Tensor) -> Tensor:
        """The mask of the tail classes, bool [C], from n_c [C] by ``reat.tail_set``."""
        return TAIL_SETS[self.config.reat.tail_set](class_counts)

    def begin_epoch(self, epoch: int) -> None:
        """Count the predictions of the epoch from zero."""
        self.counting = torch.zeros_like(self.counting)

    def end_step(self, step: Step, terms: LossTerms) -> None:
        """Count the predicted classes of the adversarial images."""
        self.counting += F.one_hot(terms.logits.argmax(dim=1), terms.logits.shape[1]).sum(dim=0)

    def end_epoch(self, epoch: int) -> None:
        """Keep the counts of this epoch as A_c of the next."""
        self.predicted = self.counting

    def state_dict(self) -> dict[str, Any]:
        """A_c, and the counts of this epoch."""
        return {"predicted": self.predicted, "counting": self.counting}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; a former version saved A_c alone, and nothing before it had one."""
        predicted = state.get("predicted")
        self.predicted = None if predicted is None else predicted.to(self.counting)
        if "counting" in state:
            self.counting = state["counting"].to(self.counting, copy=True)

    def objective(self, step: Step) -> Objective:
        """RBL: ``attack.loss`` of every image, times w of its class in the modes that couple the images of a batch.

        In evaluation mode the gradient of an image depends on that image alone. A positive factor changes neither its
        sign nor its direction, and could only underflow.
        """
        inner = super().objective(step)
        if self.config.attack.mode == "eval":
            return inner
        counts = step.class_counts
        weights = rbl_weights(counts, counts if self.predicted is None else self.predicted)
        return lambda logits, labels, x_adv: weights.to(logits)[labels] * inner(logits, labels, x_adv)

    def loss(self, step: Step) -> LossTerms:
        """``loss.cls``, by default balanced softmax, on x' plus lambda * TAIL on their features."""
        reat, counts = self.config.reat, step.class_counts
        features, logits = features_and_logits(step.model, step.x_adv)
        cls = self.classification(logits, step)
        sign, in_tail = SIGN_OF_PAIRS[reat.tail_sign], self.tail_classes(counts)
        tail = tail_term(features, step.batch.labels, counts, in_tail, reat.tail_impl, sign)
        return LossTerms(cls + reat.tail * tail, logits, {"cls": cls, "tail": tail})


def rbl_weights(class_counts: Tensor, predicted: Tensor) -> Tensor:
    """w_c in float64, [C], of n_c and A_c [C]: large where few adversarial images are classified as c."""
    n = class_counts.clamp(min=1).double()
    b = (n - 1) / n
    w = 1 / ((1 - b ** predicted.double()) / (1 - b) + 1e-5)
    return w / w.sum() * len(w)


def tail_term(
    features: Tensor, labels: Tensor, class_counts: Tensor, tail_classes: Tensor, impl: str, sign: float
) -> Tensor:
    """TAIL, 0-dim, for all pairs of a batch at once; 0 where no image belongs to the tail.

    Args:
        features: h, [B, d].
        labels: [B].
        class_counts: n_c, [C].
        tail_classes: bool [C].
        impl: a key of :data:`PAIR_MEANS`.
        sign: s_ij of images of different classes; for images of one class it is negated.
    """
    log_q = F.log_softmax(features, dim=1)
    log_p = log_q.detach()
    p = log_p.exp()
    divergence = ((p * log_p).sum(dim=1, keepdim=True) - p @ log_q.T) / features.shape[1]
    rarity = (class_counts.sum() / class_counts.clamp(min=1)).sqrt().to(features)[labels]
    different = (labels[:, None] != labels).to(features)
    weight = sign * (2 * different - 1) * (rarity[:, None] + rarity)
    terms = PAIR_MEANS[impl](divergence, weight)
    in_tail = tail_classes[labels].to(terms)
    return (terms * in_tail).sum() / in_tail.sum().clamp(min=1)


PAIR_MEANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "code": lambda divergence, weight: divergence.mean(dim=1) * weight.mean(dim=1),
    "per_pair": lambda divergence, weight: (divergence * weight).mean(dim=1),
}
"""(K_ij [B, B], S_ij [B, B]) → t_i [B]."""

SIGN_OF_PAIRS = {"code": 1.0, "intended": -1.0}
"""s_ij of images of different classes."""


def _last_third(class_counts: Tensor) -> Tensor:
    c = len(class_counts)
    return torch.arange(c, device=class_counts.device) >= 2 * (c // 3) + 1


def _as_many_rarest(class_counts: Tensor) -> Tensor:
    tail = torch.zeros_like(class_counts, dtype=torch.bool)
    by_count = class_counts.argsort(descending=True, stable=True)
    tail[by_count] = _last_third(class_counts)
    return tail


TAIL_SETS: dict[str, Callable[[Tensor], Tensor]] = {"index": _last_third, "count": _as_many_rarest}
"""The reference code's labels from 2 * floor(C / 3) + 1 on (7, 8, 9 of ten classes), or as many of the rarest."""
