"""The figures of `ltat demo`: each method's over the seeds, and the gain over the baseline, seed by seed."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ltat.errors import LtatError

if TYPE_CHECKING:
    from rich.table import Table

    from ltat.sweeps import RunPlan
    from ltat.sweeps.paired import Gain
    from ltat.sweeps.results import Row

ROWS = BASELINE, STUDENT = "AT-BSL", "self-distill"
GROUPS = {"overall": "all", "few": "rare classes", "tail": "rarest class"}
"""The groups of the table, and what its columns call them."""


class DemoResults:
    """The figures of a demo.

    Attributes:
        rows: the accuracies of both methods, as a sweep collects them, in the order of the seeds.
        images: the number of test images of each group.
        classes: the classes of each group.
    """

    def __init__(self, plans: "list[RunPlan]") -> None:
        from ltat.sweeps.results import collect

        rows = collect(plans)
        self.rows: Mapping[str, Row] = {name: rows[name] for name in ROWS}
        self.images = image_numbers(plans[0])
        self.classes = group_classes(plans[0])

    @property
    def attacks(self) -> list[str]:
        """The attacks, the weakest first."""
        return list(self.rows[BASELINE].figures)

    def gain(self, attack: str, group: str) -> "Gain | None":
        """What the student gains over the baseline, ``None`` for a group without images."""
        from ltat.sweeps.paired import paired_gain

        baseline, student = ([v for v in self.rows[row].figures[attack][group] if v is not None] for row in ROWS)
        return paired_gain(student, baseline) if student else None

    def to_json(self) -> dict[str, Any]:
        """The figures as a tree for ``json.dumps``: of every attack, group and seed."""
        return {
            "images": self.images,
            "classes": self.classes,
            "figures": {
                attack: {
                    group: {name: row.figures[attack][group] for name, row in self.rows.items()}
                    | {"gain": None if (gain := self.gain(attack, group)) is None else asdict(gain)}
                    for group in GROUPS
                }
                for attack in self.attacks
            },
        }

    def table(self) -> "Table":
        """A row for each attack and method, and one for the gain."""
        from rich import box
        from rich.table import Table

        from ltat.sweeps.results import cell

        table = Table(title="Accuracy in percent", box=box.HORIZONTALS, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column("attack", no_wrap=True)
        table.add_column("", no_wrap=True)
        for group, name in GROUPS.items():
            table.add_column(f"{name}\n{self.images[group]} images", justify="right", no_wrap=True)
        for attack in self.attacks:
            for name, row in self.rows.items():
                table.add_row(attack, name, *(cell(row.figures[attack][group]) for group in GROUPS))
            table.add_row(attack, "gain", *(gain_cell(self.gain(attack, group)) for group in GROUPS), style="bold")
            table.add_section()
        return table


def gain_cell(gain: "Gain | None") -> str:
    """A gain with its sign, and below it its interval."""
    if gain is None:
        return "–"
    interval = "" if gain.low is None else f"\n({gain.low:+.1f} to {gain.high:+.1f})"
    return f"{gain.mean:+.1f}{interval}"


def image_numbers(plan: "RunPlan") -> dict[str, int]:
    """The number of test images of each group, from the report of a run.

    Raises:
        LtatError: the report is lost.
    """
    from ltat.sweeps.results import CHECKPOINT
    from ltat.sweeps.state import read_report

    report = (read_report(plan.folder) or {}).get(CHECKPOINT)
    if report is None:
        raise LtatError(f"{plan.folder / 'report.json'} cannot be read; repeat the demo")
    return {group: report["clean"]["n"][group] for group in GROUPS}


def group_classes(plan: "RunPlan") -> dict[str, list[int]]:
    """The digits of each group of rare classes."""
    from ltat.config.resolving import for_dataset
    from ltat.evaluation.groups import class_groups
    from ltat.training.run_data import load_data

    counts = load_data(for_dataset(plan.asked()).config).dataset.train.counts
    masks = class_groups(len(counts), counts)
    return {group: mask.nonzero()[0].tolist() for group, mask in masks.items() if mask is not None and group in GROUPS}
