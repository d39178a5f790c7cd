"""Classifiers for small images, and how they are kept on disk."""

from ltat.models.base import Classifier
from ltat.models.card import ModelCard, load_model, load_weights, read_card, save_model
from ltat.models.classes import check_classes, order_classes
from ltat.models.heads import HEADS, CosineClassifier, put_head
from ltat.models.published import load_published
from ltat.models.registry import MODELS, build_model

__all__ = [
    "HEADS",
    "MODELS",
    "Classifier",
    "CosineClassifier",
    "ModelCard",
    "build_model",
    "check_classes",
    "load_model",
    "load_published",
    "load_weights",
    "order_classes",
    "put_head",
    "read_card",
    "save_model",
]
