"""Training: settings in, run folder out."""

from ltat.training.preparing import prepare
from ltat.training.run import train
from ltat.training.stage import Stage
from ltat.training.teacher_run import teacher_key, train_teacher_alone
from ltat.training.trainer import Trainer

__all__ = ["Stage", "Trainer", "prepare", "teacher_key", "train", "train_teacher_alone"]
