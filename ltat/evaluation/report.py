"""Evaluations on the terminal and on disk."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from ltat.evaluation.evaluate import Evaluation
from ltat.files import atomic_write_text

COLUMNS = ("overall", "balanced", "tail", "many", "medium", "few")


def render_table(evaluations: Sequence[Evaluation]) -> Table:
    """One row per attack and model, models under each other so that they compare; flags below.

    A dash stands for a group without images, or unknown because the training counts are.
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
    table.add_column("model", overflow="fold")  # what is too long goes on below; no figure ever gives way to a name
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
    return Text("\n".join([*dict.fromkeys(lines), *flags]))  # not a string, whose brackets rich would read
