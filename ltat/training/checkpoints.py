"""The checkpoints of a stage: saving its newest and its best weights, and resuming from the state beside them."""

from pathlib import Path

from ltat import __version__
from ltat.arguments import shown
from ltat.errors import LtatError
from ltat.models import read_card
from ltat.models.card import saved_tensors
from ltat.training.averaging import average_record, raw_stage
from ltat.training.epoch_metrics import Row
from ltat.training.run_data import RunData
from ltat.training.run_folder import TEACHER_FILES, RunFolder, StageFiles
from ltat.training.stage import Stage
from ltat.training.trainer import Trainer
from ltat.training.trainer_state import load_state
from ltat.training.validation import corrects_prior

NOTHING_YET: Row = {"score": -1.0, "epoch": 0}


def restore(trainer: Trainer, data: RunData, folder: RunFolder, files: StageFiles) -> tuple[list[Row], Row]:
    """Resume a stage from its folder; returns the metrics of its complete epochs, and those of the best epoch.

    Raises:
        LtatError: the saved state is damaged or belongs to another network.
    """
    stage = trainer.stage
    state = stage.ranks.told(folder.load_state(files.state))
    if state is None:
        folder.restore_metrics(stage.name, [])
        stage.method.initialise(stage.model)
        return [], NOTHING_YET
    rows, best = state["rows"], state["best"]
    try:
        saved = rows[-1]["stage"] if rows else state["stage"]
        if saved != stage.name or state["epoch"] > stage.config.train.epochs:
            raise ValueError(f"it is of epoch {state['epoch']} of stage {saved!r}")
        load_state(trainer, state)
    except Exception as error:  # a wrong file can raise any type
        reason = str(error).partition("\n")[0] or type(error).__name__
        where = folder.path / files.state
        raise LtatError(f"the training state {where} is not of this run ({reason}); delete it to start over") from None
    folder.restore_metrics(stage.name, rows)
    if not trainer.metrics.steps:  # else the state's weights are those of no epoch
        save_weights(trainer, data, folder, files, rows, best)
    if stage.ranks.leads:  # which may have written them just now
        check_best(folder, files.best, best, state["epoch"])
        if raw_stage(stage) is not None:
            check_best(folder, files.raw_best, best_raw(rows), state["epoch"])
    return rows, best


def check_best(folder: RunFolder, name: str, best: Row, epoch: int) -> None:
    """Check the best weights ``name`` so far before training continues; the state of ``epoch`` does not contain them.

    Raises:
        LtatError: they are damaged, or of another epoch.
    """
    path = folder.path / f"{name}.safetensors"
    if not best["epoch"]:
        return
    if not path.exists():
        return folder.say(f"warning: {path} of epoch {best['epoch']} is lost; only a better epoch writes a new one")
    try:
        saved_tensors(path)
        found = saved_row(path)["epoch"]
    except LtatError as error:
        reason = str(error).rpartition("; ")[0]  # without the remedy, which does not fit a run that goes on
        raise LtatError(f"{reason}; restore it with its card, or delete it to go on without") from None
    later = found > epoch  # written before its state was lost; that epoch is trained again
    if found != best["epoch"] and not later:
        raise LtatError(f"{path} is of epoch {found} and the best was {best['epoch']}; delete it to go on without")


def saved_row(path: Path) -> Row:
    """The metrics of its epoch that the card of a checkpoint records.

    Raises:
        LtatError: the card is damaged, or names no epoch.
    """
    row = read_card(path).extra
    epoch = row.get("epoch")
    if not isinstance(epoch, int) or isinstance(epoch, bool):
        raise LtatError(
            f"the card of {path} names no epoch ({shown(epoch)}); restore its card, or delete it to go on without"
        )
    return row


def require_best_teacher(folder: RunFolder) -> Path:
    """The file of the best weights of a complete teacher stage.

    Raises:
        LtatError: it is lost.
    """
    path = folder.path / f"{TEACHER_FILES.best}.safetensors"
    if not path.exists():
        raise LtatError(
            f"teacher.ckpt=best needs {path}, which is lost; restore it with its card, or delete "
            f"{' and '.join(TEACHER_FILES.states)} beside it to train the teacher again"
        )
    return path


def save_weights(
    trainer: Trainer, data: RunData, folder: RunFolder, files: StageFiles, rows: list[Row], best: Row
) -> None:
    """Write the newest weights, and as the best too if they are; so those of the raw network, where it is reported."""
    save_newest(trainer.outcome, data, folder, files.last, files.best, rows[-1], best)
    raw = raw_stage(trainer.stage)
    if raw is not None:
        row = {**rows[-1], **{name: rows[-1]["raw"].get(name) for name in ("select", "score", "val")}}
        save_newest(raw, data, folder, files.raw_last, files.raw_best, row, best_raw(rows))


def best_raw(rows: list[Row]) -> Row:
    """The metrics of the first epoch in which the raw network had its best score."""
    candidates = [row for row in rows if row.get("raw", {}).get("score") is not None]
    return max(candidates, key=lambda row: row["raw"]["score"], default=NOTHING_YET)


def save_newest(
    stage: Stage, data: RunData, folder: RunFolder, last: str, name_of_best: str, row: Row, best: Row
) -> None:
    """Write the stage's weights as ``last``, and as ``name_of_best`` if ``row`` is of the epoch of ``best``."""
    save_checkpoint(stage, data, folder, last, row, best=False)
    if row["epoch"] == best["epoch"]:
        save_checkpoint(stage, data, folder, name_of_best, row, best=True)


def save_checkpoint(stage: Stage, data: RunData, folder: RunFolder, name: str, row: Row, *, best: bool) -> None:
    """Write the stage's weights and their card."""
    config = stage.config
    extra = {
        "ltat": __version__,
        "stage": stage.name,
        "method": config.method,
        "epoch": row["epoch"],
        "dataset": config.data.name,
        "imbalance_ratio": config.data.imbalance_ratio,
        "test_imbalance_ratio": config.data.test_imbalance_ratio,
        "imbalance": config.data.imbalance,
        "class_order": config.data.class_order,
        "subset_seed": config.seed.subset,
        "train_counts": data.dataset.train.counts.tolist(),
        "threat_model": {"norm": config.attack.norm, "eps": config.attack.eps},
        "eval_tau": config.eval.tau,
        "corrects_prior": corrects_prior(stage),
        "select": config.select.set,
        "best": best,
        "score": row.get("score"),
        **average_record(config, row["epoch"]),
    }
    folder.save_weights(stage.model, name, extra, data.dataset.class_names)
