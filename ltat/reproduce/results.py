"""Our figures beside the published ones, as a tree for JSON: all that a page shows is in it."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import Any

from ltat.files import read_text
from ltat.reproduce.cost import Images, run_cost
from ltat.reproduce.intervals import Verdicts, accuracy_interval, difference_interval
from ltat.reproduce.ordering import Entry, Ordering, ordering
from ltat.reproduce.planning import Place, Planned, row_images, row_settings
from ltat.reproduce.scales import Scale
from ltat.reproduce.targets import Cell, Column, Target
from ltat.sweeps import Phase, RunPlan
from ltat.sweeps.running import States
from ltat.sweeps.state import read_report

LARGEST = 1 << 24  # bytes of a file that is read
Report = Mapping[str, Any]
Reports = Mapping[str, Report]


def result_tree(target: Target, planned: Sequence[Planned], states: States, place: Place) -> dict[str, Any]:
    """The whole result of a target."""
    reports = {plan.name: read_report(plan.folder) or {} for own in planned for plan in own.runs}
    done = {name for name, state in states.items() if state.phase is Phase.FINISHED}
    reports = {name: report for name, report in reports.items() if name in done}
    rows = [row_tree(target, own, states, reports, place.scale) for own in planned]
    return {
        "target": target.name,
        "title": target.title,
        "source": target.source,
        "note": target.note,
        "scale": place.scale.name,
        "scale_remark": place.scale.remark,
        "comparable": place.scale.comparable,
        "columns": [column.title for column in target.columns],
        "checkpoints": list(target.checkpoints),
        "data": data_trees(planned, place),
        "rows": rows,
        "orderings": ordering_trees(target, planned, reports),
        "baseline": target.baseline,
        "gains": gain_trees(target, planned, reports),
    }


def data_trees(planned: Sequence[Planned], place: Place) -> list[dict[str, Any]]:
    """The data of the rows, each once: the name, and the numbers of images."""
    trees = []
    for own in planned:
        asked = row_settings(own.cell)
        named = asked.config.data.name if place.stand_in is None else place.stand_in.name
        images = row_images(own)
        if images is not None:
            numbers = {"counts": list(images.counts), "test": images.test}
            trees.append({"group": own.cell.group, "name": named, "of": asked.config.data.name, **numbers})
    return list({json.dumps(tree): tree for tree in trees}.values())


def row_tree(target: Target, planned: Planned, states: States, reports: Reports, scale: Scale) -> dict[str, Any]:
    """A row: its runs and its figures by checkpoint and column."""
    cell = planned.cell
    images = row_images(planned)
    figures = {
        checkpoint: {
            column.title: figure_tree(cell, checkpoint, column, planned.runs, reports, scale)
            for column in target.columns
        }
        for checkpoint in target.checkpoints
    }
    return {
        "label": cell.label,
        "group": cell.group,
        "recipe": cell.recipe,
        "settings": dict(cell.settings),
        "refused": planned.refused,
        "runs": [run_tree(plan, states, images) for plan in planned.runs],
        "doubts": list(dict.fromkeys(row.doubt for row in cell.published.values() if row.doubt)),
        "figures": figures,
    }


def run_tree(plan: RunPlan, states: States, images: Images | None) -> dict[str, Any]:
    """A run: where it stands, and what tells it from another one."""
    state = states[plan.name]
    try:
        environment = json.loads(read_text(plan.folder / "env.json", LARGEST))
    except (OSError, ValueError, RecursionError):
        environment = {}
    config = plan.folder / "config.toml"
    known = ("ltat", "commit", "machine", "device", "gpu", "threads")
    return {
        "name": plan.name,
        "seed": plan.settings["seed"]["train"],
        "state": str(state.phase),
        "error": state.error,
        "config_sha256": sha256(config.read_bytes()).hexdigest() if config.exists() else None,
        **{name: environment.get(name) for name in known},
        "image_passes": round(run_cost(plan.asked(), images).training),
    }


def figure_tree(
    cell: Cell, checkpoint: str, column: Column, plans: Sequence[RunPlan], reports: Reports, scale: Scale
) -> dict[str, Any]:
    """A figure: ours with its interval and its verdict counts, the published one, and the difference."""
    own = verdicts(plans, reports, checkpoint, column)
    row = cell.published.get(checkpoint)
    published = None if row is None else row.figures.get(column.published)
    doubtful = row is not None and published is not None and column.published in row.doubtful
    interval = accuracy_interval(list(own.values())) if own else None
    compares = interval is not None and published is not None and scale.comparable
    return {
        "ours": None if interval is None else asdict(interval),
        "verdicts": {str(seed): asdict(each) for seed, each in own.items()},
        "published": published,
        "doubtful": doubtful,
        "difference": interval.value - published if compares else None,  # type: ignore[union-attr,operator]
    }


def verdicts(plans: Sequence[RunPlan], reports: Reports, checkpoint: str, column: Column) -> dict[int, Verdicts]:
    """The counts of correct images by training seed, of the finished runs."""
    found = {}
    for plan in plans:
        attacks = reports.get(plan.name, {}).get(checkpoint, {})
        own = next((attacks[name] for name in attacks if name.partition("@")[0] == column.attack), None)
        if isinstance(own, dict) and own.get(column.group) is not None:
            n = images_behind(own["n"], column.group)
            found[int(plan.settings["seed"]["train"])] = Verdicts(round(own[column.group] * n / 100), n)
    return found


def images_behind(counts: Mapping[str, Any], group: str) -> int:
    """The number of images of a group; for a mean over classes that which gives its variance, C² / Σ 1/n_c.

    The two are equal where all classes have as many images.
    """
    if group != "balanced":
        return int(counts[group])
    present = [each for each in counts["per_class"] if each]
    return round(len(present) ** 2 / sum(1 / each for each in present))


def ordering_trees(target: Target, planned: Sequence[Planned], reports: Reports) -> list[dict[str, Any]]:
    """Whether the published order holds, for each checkpoint, group of rows and column with two figures."""
    trees = []
    for checkpoint in target.checkpoints:
        for group in dict.fromkeys(own.cell.group for own in planned):
            rows = [own for own in planned if own.cell.group == group]
            for column in target.columns:
                found = ordering(entries(rows, checkpoint, column, reports))
                if found is not None:
                    place = {"checkpoint": checkpoint, "group": group, "column": column.title}
                    trees.append({**place, **ordering_tree(found)})
    return trees


def gain_trees(target: Target, planned: Sequence[Planned], reports: Reports) -> list[dict[str, Any]]:
    """Our figure minus that of the baseline, by the seeds that both have."""
    trees = []
    for base in (own for own in planned if own.cell.label == target.baseline):
        others = [own for own in planned if own.cell.group == base.cell.group and own is not base]
        for checkpoint, column, own in itertools.product(target.checkpoints, target.columns, others):
            found = [verdicts(each.runs, reports, checkpoint, column) for each in (own, base)]
            seeds = sorted(found[0].keys() & found[1].keys())
            if seeds:
                gain = difference_interval(*([counts[seed] for seed in seeds] for counts in found))
                place = {"checkpoint": checkpoint, "group": own.cell.group, "column": column.title}
                trees.append({**place, "row": own.cell.label, "seeds": seeds, "gain": asdict(gain)})
    return trees


def entries(rows: Sequence[Planned], checkpoint: str, column: Column, reports: Reports) -> list[Entry]:
    """The rows whose order can be compared: with a published figure beyond doubt, and one of ours."""
    found = []
    for own in rows:
        row = own.cell.published.get(checkpoint)
        counts = verdicts(own.runs, reports, checkpoint, column)
        if row is not None and column.published in row.figures and column.published not in row.doubtful and counts:
            found.append(Entry(own.cell.label, row.figures[column.published], counts))
    return found


def ordering_tree(found: Ordering) -> dict[str, Any]:
    """An ordering with all its pairs."""
    pairs = [
        {**asdict(pair), "agrees": pair.agrees, "contradicts": pair.contradicts}
        for pair in sorted(found.pairs, key=lambda pair: pair.ours.value)
    ]
    return {"verdict": found.verdict, "tau": found.tau, "pairs": pairs}
