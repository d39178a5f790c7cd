"""Training: settings in, run folder out."""

from ltat.training.run import prepare, train
from ltat.training.trainer import Stage, Trainer

__all__ = ["Stage", "Trainer", "prepare", "train"]
