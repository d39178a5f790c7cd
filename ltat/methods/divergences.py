"""Kullback-Leibler divergences, computed in log space, and the means that the literature takes of them.

KL(p || q) = sum_k p_k (log p_k - log q_k). Computed from log-softmax outputs, its gradient stays finite in both
arguments where a probability underflows to zero; computed from a softmax target, it becomes NaN.
"""

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["batchmean", "elementmean", "10xelementmean", "sum"]
"""``batchmean``: sum / B. ``elementmean``: sum / (B C), as torch's "mean" does, so 1 / C of the batchmean.
``10xelementmean``: ten times that, the batchmean of 10 classes. ``sum``: over everything."""

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "batchmean": lambda terms: terms.sum() / len(terms),
    "elementmean": lambda terms: terms.mean(),
    "10xelementmean": lambda terms: 10 * terms.mean(),
    "sum": lambda terms: terms.sum(),
}


def kl_terms(log_p: Tensor, log_q: Tensor) -> Tensor:
    """p_k (log p_k - log q_k) of log-probabilities [B, C], for each k, as [B, C]; gradients flow through both."""
    return log_p.exp() * (log_p - log_q)


def kl_divergence(target_logits: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(target) || softmax(logits)) of logits [B, C] for each image, [B]; gradients flow through both."""
    return kl_terms(F.log_softmax(target_logits, dim=1), F.log_softmax(logits, dim=1)).sum(dim=1)


def kl(target_logits: Tensor, logits: Tensor, reduction: Reduction = "batchmean", temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(target / T) || softmax(logits / T)) of logits [B, C] at temperature T, 0-dim.

    The factor T^2 keeps the gradient's scale when T changes (Hinton et al. 2015).
    """
    log_p, log_q = (F.log_softmax(z / temperature, dim=1) for z in (target_logits, logits))
    return temperature**2 * REDUCTIONS[reduction](kl_terms(log_p, log_q))
