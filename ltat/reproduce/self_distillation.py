"""The tables and figures of the main paper (Cho, Lee, Kim; ICLR 2025; arXiv 2503.06461)."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from ltat.reproduce.published import SELF_DISTILLATION, Published, published_checkpoints
from ltat.reproduce.targets import BASELINE, COLUMNS, MAIN, OTHER, Cell, Column, Target

SOURCE = "Cho, Lee, Kim, ICLR 2025 (arXiv 2503.06461)"
METHODS = ("pgd-at", "trades", "mart", "awp", "robal", "reat", "at-bsl", "self-distill")
LONG_TAILED = ("robal", "reat", "at-bsl", "self-distill")
STUDENT = "self-distill"
LABELS = {
    "pgd-at": "PGD-AT",
    "trades": "TRADES",
    "mart": "MART",
    "awp": "AWP",
    "robal": "RoBal",
    "reat": "REAT",
    "at-bsl": "AT-BSL",
    STUDENT: "self-distill",
}
POLICIES = {"ra": "RandAugment", "aua": "AutoAugment"}
SETTINGS = {
    "c10-ir50-rn18": "CIFAR-10-LT, ratio 50, ResNet-18",
    "c100-ir10-rn18": "CIFAR-100-LT, ratio 10, ResNet-18",
    "tiny-ir10-prn18": "Tiny-ImageNet-LT, ratio 10, PreActResNet-18",
    "c10-ir50-wrn34-10": "CIFAR-10-LT, ratio 50, WideResNet-34-10",
    "c100-ir10-wrn34-10": "CIFAR-100-LT, ratio 10, WideResNet-34-10",
}
WITHOUT_AUTOATTACK = tuple(column for column in COLUMNS if column.attack != "autoattack")
OVERALL = tuple(column for column in COLUMNS if column.group == "overall")
ABLATED = "c100-ir10-rn18"
"""The setting of the ablations; Figures 5 to 8 do not name theirs in the text that we have."""
LONGER = 1.5
"""Table 9's factor on the epochs of the baselines: the compute of the main method in units of AT-BSL's."""
ALPHAS = (1, 2, 5, 10, 20, 50)
GAMMAS = (2.5, 5, 7.5, 10)
ALPHA, GAMMA = 10, 5
"""The method's own values in that setting; GAMMA is half the ratio. Their rows are the run of the other tables."""


def targets() -> Iterator[Target]:
    """Every table and figure with runs, in the order of the paper."""
    for number, setting in {1: "c10-ir50-rn18", 2: "c100-ir10-rn18", 3: "tiny-ir10-prn18"}.items():
        yield main_table(number, setting)
    yield augmentation()
    yield ratios()
    yield teacher()
    for number, setting in {7: "c10-ir50-wrn34-10", 8: "c100-ir10-wrn34-10"}.items():
        yield main_table(number, setting)
    yield longer()
    yield five_runs()
    yield other_teachers()
    yield sensitivity(6, "all classes", OVERALL)
    yield sensitivity(7, "tail classes", [column for column in COLUMNS if column.group == "tail"])
    yield class_groups()


def main_table(number: int, setting: str) -> Target:
    """A table of all methods in one setting."""
    cells = ranked([cell(f"Table {number}", setting, method) for method in METHODS])
    return Target(f"table{number}", SETTINGS[setting], SOURCE, cells)


def cell(table: str, setting: str, method: str, group: str = "", **changes: Any) -> Cell:
    """The row of a method, ``METHOD`` or ``METHOD-POLICY``, in a table."""
    base, _, policy = method.rpartition("-")
    label = f"{LABELS[base]}, {POLICIES[policy]}" if policy in POLICIES else LABELS[method]
    ratio = float(setting.split("-")[1].removeprefix("ir"))
    published = published_checkpoints(SELF_DISTILLATION, table, method, ratio=ratio)
    return replace(Cell(label, f"ltat-sd/{setting}/{method}", group=group, published=published), **changes)


def ranked(cells: Iterable[Cell]) -> list[Cell]:
    """Rows of one group in which the main method comes first, and then the baseline with the best published figure."""
    cells = list(cells)
    baselines = [each for each in cells if STUDENT not in each.recipe]
    best = max(baselines, key=strength, default=None)
    ranks = {id(each): MAIN if STUDENT in each.recipe else BASELINE for each in cells if each not in baselines}
    return [replace(each, rank=BASELINE if each is best else ranks.get(id(each), each.rank)) for each in cells]


def strength(cell: Cell) -> float:
    """The published robustness of a row under AutoAttack, or PGD-20 where that is all there is; 0 where doubtful."""
    row: Published | None = cell.published.get("best") or cell.published.get("last")
    if row is None:
        return 0.0
    name = "aa" if "aa" in row.figures else "pgd20"
    return 0.0 if name in row.doubtful else row.figures.get(name, 0.0)


def augmentation() -> Target:
    """Table 4: three augmentations, each a group."""
    groups = {"": "crop and flip", "-ra": "RandAugment", "-aua": "AutoAugment"}
    cells = [
        each
        for policy, group in groups.items()
        for each in ranked(cell("Table 4", ABLATED, f"{method}{policy}", group) for method in LONG_TAILED)
    ]
    return Target("table4", f"augmentation: {SETTINGS[ABLATED]}", SOURCE, cells)


def ratios() -> Target:
    """Table 5: four imbalance ratios, each a group."""
    cells = [
        each
        for ratio in (50, 20, 10, 5)
        for each in ranked(cell("Table 5", f"c100-ir{ratio}-rn18", method, f"ratio {ratio}") for method in LONG_TAILED)
    ]
    return Target("table5", "imbalance ratios: CIFAR-100-LT, ResNet-18", SOURCE, cells)


def teacher() -> Target:
    """Table 6: the balanced self-teacher beside the baselines; it is the teacher in the main method's run."""
    baselines = [cell("Table 6", ABLATED, method) for method in ("robal", "reat", "at-bsl")]
    rows = published_checkpoints(SELF_DISTILLATION, "Table 6", "balanced-teacher")
    own = Cell("balanced self-teacher", f"ltat-sd/{ABLATED}/{STUDENT}", published={"teacher": rows["unstated"]})
    cells = ranked([own, *baselines])
    columns, shown = WITHOUT_AUTOATTACK, ("best", "teacher")
    note = "The teacher's row is that of the main method's teacher stage, at its last epoch; the paper names none."
    return Target("table6", f"the self-teacher: {SETTINGS[ABLATED]}", SOURCE, cells, columns, shown, note=note)


def longer() -> Target:
    """Table 9: baselines trained longer."""
    usual = [cell("Table 9", ABLATED, method) for method in LONG_TAILED]
    epochs = {"robal": 80, "reat": 80, "at-bsl": 100}
    more = [
        cell("Table 9", ABLATED, method, label=f"{LABELS[method]}, {LONGER:g} × epochs", settings=extended(own))
        for method, own in epochs.items()
    ]
    note = (
        f"The table's cells are not in the text that we have, which says that more epochs gave no gain and that REAT "
        f"declined; {LONGER:g} times the epochs, about the compute of the main method, are ours."
    )
    return Target("table9", f"longer training: {SETTINGS[ABLATED]}", SOURCE, ranked([*usual, *more]), note=note)


def extended(epochs: int) -> dict[str, Any]:
    """The settings of a run :data:`LONGER` times as long; milestones are shares of the epochs."""
    return {"train.epochs": round(LONGER * epochs)}


def five_runs() -> Target:
    """Table 10: the main method with five seeds."""
    row = published_checkpoints(SELF_DISTILLATION, "Table 10", "self-distill-mean")
    own = Cell("self-distill, mean of 5 runs", f"ltat-sd/{ABLATED}/{STUDENT}", rank=MAIN, published=row)
    columns, note = WITHOUT_AUTOATTACK, "Published: the mean of five runs, whose best checkpoints it takes to be."
    return Target("table10", f"five runs: {SETTINGS[ABLATED]}", SOURCE, [own], columns, ("best",), 5, note)


def variant(label: str, **settings: Any) -> Cell:
    """The main method with other settings, whose names have ``__`` for the dot."""
    dotted = {name.replace("__", "."): value for name, value in settings.items()}
    return Cell(label, f"ltat-sd/{ABLATED}/{STUDENT}", dotted)


def with_alpha(alpha: float) -> Cell:
    """The main method with that weight of distillation."""
    own = alpha == ALPHA
    return replace(variant(f"α = {alpha:g}", **({} if own else {"kd__alpha": alpha})), rank=MAIN if own else OTHER)


def with_gamma(gamma: float) -> Cell:
    """The main method with a teacher on γ n_min images of every class."""
    own = gamma == GAMMA
    return replace(variant(f"γ = {gamma:g}", **({} if own else {"db__gamma": gamma})), rank=MAIN if own else OTHER)


def other_teachers() -> Target:
    """Figure 5: teachers of other training sets, and the students that they teach."""
    natural = replace(variant("all images (no D_B)", db__partial=0.0), rank=BASELINE)
    return Target(
        "figure5",
        f"other teachers: {SETTINGS[ABLATED]}",
        SOURCE,
        [natural, variant("halfway to D_B", db__partial=0.5), *map(with_gamma, GAMMAS)],
        WITHOUT_AUTOATTACK,
        ("teacher", "last"),
        note="The figure's values and its setting are not in the text that we have; the rows are ours.",
    )


def sensitivity(number: int, classes: str, columns: Iterable[Column]) -> Target:
    """Figures 6 and 7: the weight of distillation and the size of D_B; both show the same runs."""
    cells = [replace(with_alpha(alpha), group="α") for alpha in ALPHAS]
    cells += [replace(with_gamma(gamma), group="γ") for gamma in GAMMAS]
    return Target(
        f"figure{number}",
        f"α and γ, {classes}: {SETTINGS[ABLATED]}",
        SOURCE,
        cells,
        tuple(columns),
        note="The figure's values are not in the text that we have; γ = 5 is half the ratio, the default.",
    )


def class_groups() -> Target:
    """Figure 8: classes by their number of training images."""
    cells = ranked(replace(cell("Figure 8", ABLATED, method), published={}) for method in LONG_TAILED)
    groups = {"many": "more than 100 images", "medium": "20 to 100", "few": "fewer than 20", "tail": "rarest tenth"}
    columns = [
        Column(f"{name} ({words}), {title}", attack, name)
        for name, words in groups.items()
        for attack, title in (("clean", "clean"), ("pgd20", "PGD-20"))
    ]
    return Target(
        "figure8",
        f"groups of classes: {SETTINGS[ABLATED]}",
        SOURCE,
        cells,
        columns,
        note="The figure's values are not in the text that we have.",
    )
