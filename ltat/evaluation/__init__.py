"""Evaluation: accuracy clean and under attack, overall, balanced and for the rare classes."""

from ltat.evaluation.adjustment import Adjustment, adjusted
from ltat.evaluation.attacks import ATTACKS, parse_attack
from ltat.evaluation.evaluate import evaluate
from ltat.evaluation.groups import class_groups
from ltat.evaluation.metrics import summarise
from ltat.evaluation.report import Evaluation, render_table, write_json

__all__ = [
    "ATTACKS",
    "Adjustment",
    "Evaluation",
    "adjusted",
    "class_groups",
    "evaluate",
    "parse_attack",
    "render_table",
    "summarise",
    "write_json",
]
