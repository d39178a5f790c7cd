"""Whether a distillation term has taken over the training.

IGDM's authors report that their term collapses the training where the teacher is not locally linear. Its ratio to the
rest of the loss does not show that: it also rises while a student learns well, because the rest of the loss goes to
zero, and on digits it stays near 3 in a collapse. The size of the term itself tells the two apart.
"""

from collections.abc import Sequence

from ltat.training.epoch_metrics import Row

WARNING = (
    "warning: the distillation term outweighs what the rest of the loss was in the first epoch (kd_ratio in "
    "metrics.jsonl); if accuracy collapses, lower its alpha or use an adversarially trained teacher"
)


def distillation_dominates(rows: Sequence[Row]) -> bool:
    """Whether the weighted distillation term of the last epoch exceeds the rest of the loss of the first one.

    Args:
        rows: the metrics of a stage's epochs, from the first on; without ``kd_ratio`` there is no such term.
    """
    return "kd_ratio" in rows[-1] and _terms(rows[-1])[1] > _terms(rows[0])[0]


def _terms(row: Row) -> tuple[float, float]:
    """The rest of the loss, and the weighted distillation term, which is ``kd_ratio`` times as large."""
    rest = row["loss"] / (1.0 + row["kd_ratio"])
    return rest, row["loss"] - rest
