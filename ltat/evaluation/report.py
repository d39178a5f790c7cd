"""The result of an evaluation, for the terminal and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from ltat.attacks import ThreatModel
from ltat.evaluation.adjustment import Adjustment
from ltat.evaluation.attacks import Outcome
from ltat.evaluation.metrics import summarise
from ltat.files import atomic_write_text

COLUMNS = ("overall", "balanced", "tail", "many", "medium", "few")


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        model: name of the model.
        dataset: name of the data.
        threat: the threat model.
        labels: int64 [N].
        num_classes: C.
        train_counts: training images per class [C], or None.
        outcomes: by attack name, in the order asked for: which images stayed correct, settings, flags.
        flags: all flags, each with the name of its attack.
        adjust: the logit adjustment of the network, or None.
        failed: maps the names of the attacks that raised to their errors; they have no figure.
    """

    model: str
    dataset: str
    threat: ThreatModel
    labels: np.ndarray
    num_classes: int
    train_counts: Sequence[int] | np.ndarray | None
    outcomes: dict[str, Outcome]
    flags: list[str]
    adjust: Adjustment | None = None
    failed: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A dictionary for ``json.dumps``; accuracies in percent, None where a group is empty or unknown."""
        return {
            "model": self.model,
            "dataset": self.dataset,
            "n": len(self.labels),
            "threat_model": {
                "norm": self.threat.norm,
                "eps": self.threat.eps,
                "box": list(self.threat.box),
            },
            **({} if self.adjust is None else {"adjustment": self.adjust.to_json()}),
            **{name: {**self.summary(name), **o.settings} for name, o in self.outcomes.items()},
            **({"failed": dict(self.failed)} if self.failed else {}),
            "flags": list(self.flags),
        }

    def summary(self, attack: str) -> dict[str, Any]:
        """Accuracies under one of the attacks; see ``ltat.evaluation.metrics.summarise``."""
        correct = self.outcomes[attack].correct
        return summarise(correct, self.labels, self.num_classes, self.train_counts)

    def table(self) -> Table:
        """The evaluation as a table for the terminal."""
        return render_table([self])


def render_table(evaluations: Sequence[Evaluation]) -> Table:
    """A table with one row per attack and model, grouped by attack, and the flags below.

    A dash marks a group that has no images, or that is unknown because the training counts are.
    """
    table = Table(
        title="Accuracy in percent",
        caption=_caption(evaluations),
        caption_justify="left",
        box=box.HORIZONTALS,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("attack", no_wrap=True)
    table.add_column("model", overflow="fold")  # a long name is wrapped, so that no figure is cut off
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for attack in dict.fromkeys(name for evaluation in evaluations for name in evaluation.outcomes):
        for evaluation in evaluations:
            if attack in evaluation.outcomes:
                table.add_row(attack, Text(evaluation.model), *_cells(evaluation, attack))
        table.add_section()
    return table


def write_json(path: str | Path, evaluation: Evaluation) -> None:
    """Writes ``evaluation.to_json()`` to ``path``, whole or not at all."""
    atomic_write_text(path, json.dumps(evaluation.to_json(), indent=2, allow_nan=False) + "\n")


def _cells(evaluation: Evaluation, attack: str) -> list[str]:
    summary = evaluation.summary(attack)
    return ["–" if summary[column] is None else f"{summary[column]:.2f}" for column in COLUMNS]


def _adjusted(evaluation: Evaluation) -> str:
    adjust = evaluation.adjust
    return "" if adjust is None else f", logits less {adjust.tau:g} log n/N"


def _caption(evaluations: Sequence[Evaluation]) -> Text:
    lines = [f"{len(e.labels)} images, {e.threat.norm} eps {e.threat.eps:.4g}{_adjusted(e)}" for e in evaluations]
    flags = [f"! {evaluation.model}: {flag}" for evaluation in evaluations for flag in evaluation.flags]
    return Text("\n".join([*dict.fromkeys(lines), *flags]))  # not a string, in which rich would interpret brackets
