"""DAFA (Lee et al., ICLR 2024; arXiv 2401.12532): distance-aware fair adversarial training, on TRADES.

A warm-up trains by TRADES alone. Its last epoch collects P_ij, the mean of softmax(f(x'))_j over the adversarial
training images x' of class i. P gives the weight of every class:

    w_i = 1 + lambda * sum_{j != i} (  P_ij P_jj  if P_ii < P_jj  else  -P_ji P_ii  )

Of two classes the weaker gains what the stronger loses, and more where they are more similar, so that sum_i w_i = C.
From then on w multiplies the radius and the step of the attack and the cross-entropy, by the class y of each image:

    x'_i   = PGD on KL( p(x_i) || p(x'_i) ) with steps of w_{y_i} * step in the ball of w_{y_i} * eps
    min_w  mean_i w_{y_i} CE( f(x_i), y_i ) + beta * mean_i KL( p(x_i) || p(x'_i) )

x' goes through the network before x. The reference code does not keep w above 0, and on long-tailed data, where every
class resembles a head class, w can become negative. Where the least weight would fall below ``dafa.floor``, lambda is
lowered so far that it does not. The reference code's variant on plain adversarial training is not implemented.
"""

from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ltat.config import AttackSection, Decided, RunConfig, Section, left_out, named_epoch
from ltat.config.sections import NonNegative, Positive, Quotient, Tree
from ltat.errors import LtatError
from ltat.methods.attacking import training_attack
from ltat.methods.base import Method
from ltat.methods.divergences import kl_divergence
from ltat.methods.step import LossTerms, Step


class DafaSection(Section):
    """The class-wise weights of DAFA (Lee et al., ICLR 2024)."""

    beta: NonNegative = 6.0
    """TRADES' β, 0 or more."""
    warmup: Positive = 0.64
    """Epochs before the weights act: up to 1 a share of all epochs (1 is all of them), above 1 a number of epochs."""
    scale: Decided[NonNegative] = left_out()
    """λ, 0 or more; left out, the authors' value: 1 up to ten classes, 1.5 above."""
    floor: Annotated[Quotient, Field(ge=0, lt=1)] = 0.1
    """Least weight of a class, from 0 to below 1; λ is lowered where a weight would fall below it."""


class DafaConfig(RunConfig):
    """The field's common protocol; recipe ``dafa/faithful`` has the reference code's settings."""

    method: Literal["dafa"] = "dafa"
    attack: AttackSection = AttackSection(loss="kl-self")
    dafa: DafaSection = DafaSection()

    def by_method(self, num_classes: int) -> Tree:
        """The authors' λ: 1 on CIFAR-10, 1.5 on CIFAR-100 (and on STL-10)."""
        return super().by_method(num_classes) | {"dafa.scale": 1.0 if num_classes <= 10 else 1.5}


class Dafa(Method):
    """TRADES, and after the warm-up with a weight of every class on CE, eps and step.

    ``weights`` [C] is w, and ``gathered`` [C, C] the sums of the probabilities while P is collected; both are part of
    the saved state.
    """

    Config = DafaConfig
    config: DafaConfig

    def __init__(self, config: DafaConfig, class_counts: Tensor, teacher: nn.Module | None = None) -> None:
        super().__init__(config, class_counts, teacher)
        warmup, epochs = config.dafa.warmup, config.train.epochs
        self.warmup_epochs = max(1, named_epoch(warmup, epochs))
        if self.warmup_epochs >= epochs > 1:
            raise LtatError(f"dafa.warmup={warmup:g} leaves none of the {epochs} epochs to the weights; lower it")
        self.weights = torch.ones(len(class_counts), device=class_counts.device)
        self.gathered: Tensor | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Start to collect P in the last epoch of the warm-up."""
        classes = len(self.weights)
        last = epoch == self.warmup_epochs
        self.gathered = self.weights.new_zeros(classes, classes, dtype=torch.float64) if last else None

    def end_step(self, step: Step, terms: LossTerms) -> None:
        """Add the probabilities of the adversarial images to the rows of their classes."""
        if self.gathered is not None:
            member = F.one_hot(step.batch.labels, terms.logits.shape[1]).double()
            self.gathered += member.T @ terms.logits.double().softmax(dim=1)

    def end_epoch(self, epoch: int) -> None:
        """Compute the weights of the classes at the end of the warm-up."""
        if self.gathered is not None:
            # Probabilities sum to 1, so the sum of a row is its number of images. An absent class keeps the weight 1.
            similarity = self.gathered / self.gathered.sum(dim=1, keepdim=True).clamp(min=1)
            dafa = self.config.dafa
            weights = above(class_weights(similarity, dafa.scale), dafa.floor)
            self.weights, self.gathered = weights.to(self.weights), None

    def state_dict(self) -> dict[str, Any]:
        """w, and the sums for P while they are collected."""
        return {"weights": self.weights, "gathered": self.gathered}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.weights = state["weights"].to(self.weights)
        gathered = state.get("gathered")
        self.gathered = None if gathered is None else gathered.to(self.weights.device, copy=True)

    def attack(self, step: Step) -> Tensor:
        """PGD with radius and step size times w_y, by the class y of each image."""
        weights = self.weights[step.batch.labels]
        return training_attack(step, self.config, self.objective, self.threat, scale=weights)

    def loss(self, step: Step) -> LossTerms:
        """Weighted CE(f(x), y) + beta * KL(p(x) || p(x')); forwards of x', then x."""
        labels = step.batch.labels
        adv, clean = step.model(step.x_adv), step.model(step.batch.images)
        cls = (self.weights[labels] * F.cross_entropy(clean, labels, reduction="none")).mean()
        kl = kl_divergence(clean, adv).mean()
        logs = {"cls": cls, "kl": kl, "w_min": self.weights.min(), "w_max": self.weights.max()}
        return LossTerms(cls + self.config.dafa.beta * kl, adv, logs)


def class_weights(similarity: Tensor, scale: float) -> Tensor:
    """w [C] of P [C, C]; two classes of equal strength P_ii = P_jj both lose, as in the reference code."""
    strength = similarity.diagonal()
    gain = similarity * strength  # P_ij P_jj
    weaker = strength[:, None] < strength
    terms = torch.where(weaker, gain, -gain.T)
    return 1 + scale * (terms - terms.diagonal().diag()).sum(dim=1)


def above(weights: Tensor, floor: float) -> Tensor:
    """``weights`` [C] moved towards 1 by one common factor so that none lies below ``floor``; the sum stays."""
    shrink = ((1 - floor) / (1 - weights.min())).clamp(max=1)
    return 1 + (weights - 1) * shrink
