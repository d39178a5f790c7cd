"""The classes of a long-tailed set as a bar chart; needs matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltat.evaluation.groups import FEW_BELOW, MANY_ABOVE, class_groups
from ltat.files import replacing

COLOURS = {"many": "#4477aa", "medium": "#ccbb44", "few": "#ee6677"}  # distinct for colour-blind readers too
MEANING = {"many": f"above {MANY_ABOVE}", "medium": f"{FEW_BELOW} to {MANY_ABOVE}", "few": f"below {FEW_BELOW}"}
NAMED_CLASSES = 20


def write_counts_chart(path: Path, counts: np.ndarray, class_names: Sequence[str], title: str) -> None:
    """Write a PNG of the training images per class, coloured by group, with the tail outlined.

    Up to 20 classes are labelled with name and number of images; more than 20 only with their index.

    Args:
        path: the file.
        counts: n_c, integers [C].
        class_names: C names.
        title: above the chart.

    Raises:
        LtatError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  (an optional package)

    figure = Figure(figsize=(8, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    named = len(counts) <= NAMED_CLASSES
    width, total = 0.9 if named else 1.0, f"of {len(counts)} classes"
    groups = {name: np.flatnonzero(own) for name, own in class_groups(len(counts), counts).items() if own is not None}
    tail = groups.pop("tail")
    for group, own in groups.items():
        if len(own):
            label = f"{group} ({MEANING[group]} images): {len(own)} {total}"
            axes.bar(own, counts[own], color=COLOURS[group], width=width, label=label)
    axes.bar(tail, counts[tail], width=width, fill=False, edgecolor="black", label=f"tail: {len(tail)} {total}")
    if named:
        style: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor", "parse_math": False}
        axes.set_xticks(range(len(counts)), class_names, **style)
        for place, n in enumerate(counts.tolist()):
            axes.annotate(f"{n}", (place, n), ha="center", va="bottom", fontsize=8)
    else:
        axes.set_xlabel("class")
    axes.set_ylabel("training images")
    axes.set_title(title, parse_math=False)
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
