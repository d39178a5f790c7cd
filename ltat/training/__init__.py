"""Training: settings in, run folder out."""

from ltat.training.preparing import prepare
from ltat.training.run import train
from ltat.training.trainer import Stage, Trainer

__all__ = ["Stage", "Trainer", "prepare", "train"]
