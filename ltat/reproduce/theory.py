"""The theory of the main paper: Theorem 1 and Figures 2 to 4 (section 3)."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ltat.files import atomic_write_text
from ltat.reproduce.self_distillation import SOURCE
from ltat.reproduce.targets import BASELINE, LAST, MAIN, Cell, Column, Target
from ltat.theory import theorem1
from ltat.theory.theorem import ERRORS

COLUMNS = (
    Column("clean", "clean"),
    Column("PGD-20", "pgd20"),
    Column("tail, clean", "clean", "tail"),
    Column("tail, PGD-20", "pgd20", "tail"),
)
TRAININGS = {"natural": BASELINE, "pgd-at": MAIN}
SMALL_RADIUS = {"attack.eps": "2/255", "attack.step_size": "0.5/255"}
DIGITS = {
    "attack.eps": 0.0375,
    "attack.step_size": 0.009375,
    "attack.steps": 5,
    "train.device": "cpu",
    "train.epochs": 30,
}
"""A quarter of the radius of ``unified/digits``, as the paper's 2/255 is of 8/255."""
NOTE = """\
The radius 2/255 of the attack is the paper's; that training has it too, the ratios and the schedule are ours. The
figure's values are not in the text that we have."""


def targets() -> Iterator[Target]:
    """Theorem 1 and the figures that go with it."""
    yield Target("theorem1", "the tail's error, closed form and Monte-Carlo", SOURCE, compute=write_theorem)
    yield Target("figure2", "both classifiers in the plane, at ratios 1, 2 and 5", SOURCE, compute=draw_boundaries)
    yield Target("figure3", "the tail's errors over the ratio", SOURCE, compute=draw_errors)
    yield trainings("figure4", "CIFAR-10-LT, ResNet-18", "unified/cifar10", SMALL_RADIUS, (1, 2, 5, 10, 20, 50, 100))
    yield trainings("figure4-digits", "8x8 digits, small network", "unified/digits", DIGITS, (1, 5, 20, 50), seeds=3)


def trainings(
    name: str, setting: str, recipe: str, settings: Mapping[str, Any], ratios: Sequence[float], seeds: int = 1
) -> Target:
    """Figure 4: natural and adversarial training at each ratio, which is a group."""
    cells = [
        Cell(
            method,
            recipe,
            {**LAST, **settings, "method": method, "data.imbalance_ratio": ratio},
            f"ratio {ratio:g}",
            rank,
        )
        for ratio in ratios
        for method, rank in TRAININGS.items()
    ]
    title = f"natural against adversarial training over the ratio: {setting}"
    return Target(name, title, SOURCE, cells, COLUMNS, ("last",), seeds, NOTE, draw_accuracies)


def write_theorem(folder: Path) -> Sequence[str]:
    """Check the theorem and write ``theorem1.json``."""
    result = theorem1()
    atomic_write_text(folder / "theorem1.json", json.dumps(result, indent=2) + "\n")
    return described(result)


def described(result: Mapping[str, Any]) -> list[str]:
    """Each claim of the theorem, then the errors in percent: closed form and, in brackets, Monte-Carlo."""
    lines = [
        f"{'holds' if check['holds'] else 'DOES NOT HOLD'}: {check['claim']} ({check['detail']})"
        for check in result["checks"]
    ]
    lines.append(f"errors in percent, closed form (Monte-Carlo): {', '.join(ERRORS)}")
    for row in result["rows"]:
        errors = (f"{100 * row[name]['closed']:5.2f} ({100 * row[name]['mean']:5.2f})" for name in ERRORS)
        lines.append(f"r = {row['ratio']:<3g} {row['classifier']:8}{'   '.join(errors)}")
    return lines


def draw_boundaries(folder: Path) -> Sequence[str]:
    """Write ``figure2.svg``."""
    from ltat.theory.figures import write_boundaries  # noqa: PLC0415  (needs matplotlib)

    write_boundaries(folder / "figure2.svg")
    return [f"{folder / 'figure2.svg'}: the natural boundary moves into the rare class as r grows, the robust one more"]


def draw_errors(folder: Path) -> Sequence[str]:
    """Write ``figure3.svg``."""
    from ltat.theory.figures import write_errors  # noqa: PLC0415

    result = theorem1()
    write_errors(folder / "figure3.svg", result)
    return [f"{folder / 'figure3.svg'}: closed forms as lines, Monte-Carlo as points with two standard errors"]


def draw_accuracies(path: Path, tree: Mapping[str, Any]) -> None:
    """Draw Figure 4 from the tree of its runs; what is not finished is left out, and all if nothing is."""
    from ltat.theory.figures import write_accuracies  # noqa: PLC0415

    if rows := accuracies(tree):
        write_accuracies(path, rows)


def accuracies(tree: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The accuracies in percent of every finished row under each attack, as ``write_accuracies`` takes them."""
    rows = []
    for row in tree["rows"]:
        for attack in ("clean", "PGD-20"):
            groups = {"overall": attack, "tail": f"tail, {attack}"}
            found = {group: percents(row["figures"]["last"][title]["verdicts"]) for group, title in groups.items()}
            if all(found.values()):
                ratio = float(row["settings"]["data.imbalance_ratio"])
                rows.append({"method": row["label"], "ratio": ratio, "attack": attack, **found})
    return rows


def percents(verdicts: Mapping[str, Mapping[str, int]]) -> list[float]:
    """The accuracy of each seed."""
    return [100 * each["correct"] / each["n"] for each in verdicts.values()]
