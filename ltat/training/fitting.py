"""A stage from its first epoch, or from where it was left, to its last: train, validate, keep, record."""

from pathlib import Path

import torch

from ltat import __version__
from ltat.arguments import shown
from ltat.attacks.captured import why_not_captured
from ltat.attacks.modes import attack_mode
from ltat.data import Batch, Split
from ltat.engine.captured_update import why_update_not_captured
from ltat.errors import LtatError
from ltat.evaluation import Adjustment, Evaluation, evaluate
from ltat.interrupts import interrupts_wait
from ltat.models import read_card, save_model
from ltat.models.card import saved_tensors
from ltat.training.averaging import average_record
from ltat.training.profiling import RECORDED, SKIPPED, StepTrace
from ltat.training.reporting import Reporter
from ltat.training.run_folder import Row, RunFolder, StageFiles
from ltat.training.task import TaskData
from ltat.training.trainer import Stage, Trainer

KD_RATIO_LIMIT = 5.0  # above it IGDM's authors saw training collapse (a teacher that is not locally linear)
KD_WARNING = (
    f"warning: the distillation term is more than {KD_RATIO_LIMIT:g} times the rest of the loss (kd_ratio in "
    "metrics.jsonl); should accuracy collapse, lower its alpha or use a teacher trained adversarially"
)
NOTHING_YET: Row = {"score": -1.0, "epoch": 0}


def fit(
    stage: Stage, data: TaskData, folder: RunFolder, files: StageFiles, reporter: Reporter, profile: bool = False
) -> None:
    """Run a stage's remaining epochs; with ``profile`` write a trace of a few steps, ``trace-STAGE.json``."""
    if not profile:
        return run_epochs(Trainer(stage, reporter.advance), data, folder, files, reporter)
    with StepTrace(folder.path / f"trace-{stage.name}.json", stage.device) as trace:
        run_epochs(Trainer(stage, trace.counting(reporter.advance)), data, folder, files, reporter)
    if not trace.written:
        reporter.say(f"{stage.name}: fewer than {SKIPPED + RECORDED} steps were left, so there is no trace")


def run_epochs(trainer: Trainer, data: TaskData, folder: RunFolder, files: StageFiles, reporter: Reporter) -> None:
    """Run a trainer's remaining epochs.

    After each epoch the figures are written first, then the state, then the weights: whatever is cut off between
    two of these is written again from the state by :func:`restore`.
    """
    stage = trainer.stage
    rows, best = restore(trainer, data, folder, files)
    epochs, warned, launched = stage.config.train.epochs, False, updated_as(trainer)
    reporter.say(f"{stage.name}: loader {stage.loader.why}")
    reporter.say(f"{stage.name}: attack on {attacked_as(trainer, data)}")
    if stage.config.train.graph:
        reporter.say(f"{stage.name}: update {launched}")
    for remark in stage.method.remarks():
        reporter.say(f"{stage.name}: {remark}")
    steps = sum(stage.loader.steps(epoch) for epoch in range(trainer.epoch + 1, epochs + 1))
    reporter.begin(stage.name, steps * stage.loader.batch_size)
    while trainer.epoch < epochs:
        row = trainer.run_epoch()
        row |= validate(trainer.outcome, data, row["epoch"])
        if row.get("score") is not None and row["score"] > best["score"]:
            best = row
        rows.append(row)
        with interrupts_wait():
            folder.append_metrics(row)
            folder.save_state(files.state, {**trainer.state_dict(), "rows": rows, "best": best})
            save_weights(trainer.outcome, data, folder, files, row, best)
        reporter.epoch(row, epochs)
        if updated_as(trainer) != launched:
            launched = updated_as(trainer)
            reporter.say(f"{stage.name}: update {launched}")
        if row.get("kd_ratio", 0.0) > KD_RATIO_LIMIT and not warned:
            reporter.say(KD_WARNING)
            warned = True


def attacked_as(trainer: Trainer, data: TaskData) -> str:
    """Which form of the network the training attack runs on, and how, in words."""
    attack = trainer.stage.config.attack
    folded = attack.fold and attack.mode == "eval"
    form = (
        trainer.network.describe_folded() if folded else f"the network itself: fold={attack.fold}, mode={attack.mode}"
    )
    return f"{form}{launched_as(trainer, data) if trainer.stage.config.train.graph else ''}"


def launched_as(trainer: Trainer, data: TaskData) -> str:
    """Whether the attack's steps are one CUDA graph, or why not, in words."""
    stage, attack = trainer.stage, trainer.stage.config.attack
    if attack.mode != "eval":  # building an objective in such a mode may move running statistics
        return f", step by step: mode={attack.mode}"
    image = torch.zeros(1, stage.model.in_channels, *data.train.images.shape[1:3], device=stage.device)
    first = torch.zeros(1, dtype=torch.long, device=stage.device)
    with attack_mode(trainer.network, attack.mode):
        objective = stage.method.objective(trainer.step(Batch(image, first, first), 1, 0, trainer.class_counts(1)))
    why = why_not_captured(trainer.network, objective, steps=attack.steps)
    return f", step by step: {why}" if why else ", one CUDA graph"


def updated_as(trainer: Trainer) -> str:
    """Whether the update is one CUDA graph, or why not, in words."""
    why = why_update_not_captured(trainer.network, trainer.stage.method)
    if trainer.captured is not None:
        why = trainer.captured.why_not
    return f"step by step: {why}" if why else "as one CUDA graph"


def restore(trainer: Trainer, data: TaskData, folder: RunFolder, files: StageFiles) -> tuple[list[Row], Row]:
    """Take up a stage where its folder left it; returns the figures of its epochs, and those of the best one.

    Raises:
        LtatError: the saved state belongs to another network or is not one.
    """
    stage = trainer.stage
    state = folder.load_state(files.state)
    if state is None:
        folder.restore_metrics(stage.name, [])
        stage.method.initialise(stage.model)
        return [], NOTHING_YET
    rows, best = state["rows"], state["best"]
    try:
        if rows[-1]["stage"] != stage.name or state["epoch"] > stage.config.train.epochs:
            raise ValueError(f"it is of epoch {state['epoch']} of stage {rows[-1]['stage']!r}")
        trainer.load_state_dict(state)
    except Exception as error:  # of whatever type: it is the file that is wrong
        reason = str(error).partition("\n")[0] or type(error).__name__
        where = folder.path / files.state
        raise LtatError(f"the training state {where} is not of this run ({reason}); delete it to start over") from None
    folder.restore_metrics(stage.name, rows)
    save_weights(trainer.outcome, data, folder, files, rows[-1], best)
    check_best(folder, files, best, state["epoch"])
    return rows, best


def check_best(folder: RunFolder, files: StageFiles, best: Row, epoch: int) -> None:
    """Look, before training goes on, at the best weights so far, which the state of ``epoch`` does not hold.

    Raises:
        LtatError: they are damaged, or of another epoch.
    """
    path = folder.path / f"{files.best}.safetensors"
    if not best["epoch"]:
        return
    if not path.exists():
        return folder.say(f"warning: {path} of epoch {best['epoch']} is lost; only a better epoch writes another")
    saved_tensors(path)
    found = saved_row(path)["epoch"]
    later = found > epoch  # written before its state was lost; it is trained again
    if found != best["epoch"] and not later:
        raise LtatError(f"{path} is of epoch {found} and the best was {best['epoch']}; delete it to go on without")


def saved_row(path: Path) -> Row:
    """What the card of a checkpoint tells of its epoch.

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


def save_weights(stage: Stage, data: TaskData, folder: RunFolder, files: StageFiles, row: Row, best: Row) -> None:
    """Write the newest weights, and the best where the newest are the best."""
    save_checkpoint(stage, data, folder, files.last, row, best=False)
    if row["epoch"] == best["epoch"]:
        save_checkpoint(stage, data, folder, files.best, row, best=True)


def save_checkpoint(stage: Stage, data: TaskData, folder: RunFolder, name: str, row: Row, *, best: bool) -> None:
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
    save_model(stage.model, folder.path / name, extra=extra, class_names=data.dataset.class_names)


def validate(stage: Stage, data: TaskData, epoch: int) -> Row:
    """The score by which the best checkpoint is chosen, in percent; nothing in epochs that do not compete.

    It is the balanced robust accuracy (the mean over classes), because held-out images are imbalanced as the training
    set is, and a test set may be; on the balanced test set of most papers it is the overall one.
    """
    select = stage.config.select
    competes = epoch >= select.from_epoch and (epoch % select.every == 0 or epoch == stage.config.train.epochs)
    if select.set == "none" or not competes:
        return {}
    split = data.val if data.val is not None else data.dataset.test
    metric = select.metric or "pgd10"
    measured = evaluate_stage(stage, split, ("clean", metric), adjustment(stage, data)).to_json()
    return {
        "select": f"{select.set}_{metric}",
        "score": measured[metric]["balanced"],
        "val": {name: {k: measured[name][k] for k in ("overall", "balanced")} for name in ("clean", metric)},
    }


def adjustment(stage: Stage, data: TaskData) -> Adjustment | None:
    """What ``eval.tau`` takes off the logits of the deployed network, by the counts of the training set."""
    tau = stage.config.eval.tau
    return Adjustment(tau, data.dataset.train.counts.tolist()) if tau else None


def corrects_prior(stage: Stage) -> bool:
    """Whether training makes up for the class frequencies, by its loss or by what it samples."""
    return stage.method.corrects_prior or stage.config.data.sampling != "natural"


def evaluate_stage(
    stage: Stage, split: Split, attacks: tuple[str, ...], adjust: Adjustment | None = None
) -> Evaluation:
    """Evaluate a stage's network as it is deployed, under the threat model of its training."""
    return evaluate(
        stage.model,
        split,
        attacks=attacks,
        threat=stage.method.threat,
        adjust=adjust,
        batch_size=stage.config.eval.batch_size,
        seed=stage.config.seed.train,
        device=stage.device,
        precision=stage.config.train.precision,
    )
