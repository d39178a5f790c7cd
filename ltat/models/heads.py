"""Last layers by name, which a saved model records."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltat.errors import LtatError
from ltat.models.base import Classifier


class CosineClassifier(nn.Module):
    """RoBal's cosine layer (Wu et al., CVPR 2021), with the adjustment of its logits at inference inside:

        z_c = scale * v_c + offset_c,    v_c = < h / |h| , W_c / (|W_c| + gamma) >

    ``gamma``, ``scale`` and ``offset`` are constants of the state dict: 1/32, 1 and 0 until they are set. With
    ``gamma`` 0 it is the normalised layer of LDAM (Cao et al., NeurIPS 2019).
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        self.in_features = in_features
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(num_classes, in_features).uniform_(-bound, bound))
        self.gamma: Tensor
        self.scale: Tensor
        self.offset: Tensor
        self.register_buffer("gamma", torch.tensor(1 / 32))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("offset", torch.zeros(num_classes))

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, d] to logits [B, C]."""
        rows = self.weight / (self.weight.norm(dim=1, keepdim=True) + self.gamma)
        return self.scale * (F.normalize(features, dim=1) @ rows.T) + self.offset


HEADS: dict[str, Callable[[int, int], nn.Module]] = {"linear": nn.Linear, "cosine": CosineClassifier}
"""From (features d, classes C) to a layer that takes [B, d] to [B, C]."""


def put_head(model: Classifier, name: str) -> None:
    """Give ``model`` a new last layer, with weights from torch's global generator.

    Raises:
        LtatError: an unknown name, or a model whose last layer has no ``in_features``.
    """
    if name not in HEADS:
        raise LtatError(f"unknown head {name!r}; choose one of {', '.join(HEADS)}")
    width = getattr(getattr(model, "classifier", None), "in_features", None)
    if not isinstance(width, int):
        raise LtatError(f"the last layer of {type(model).__name__} has no in_features; use a model of ltat.models")
    model.replace_classifier(HEADS[name](width, model.num_classes))
    model.head = name
