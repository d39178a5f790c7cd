"""Running the epochs of a stage, from the first or from a saved state: train, validate, save, record."""

from ltat.interrupts import interrupts_wait
from ltat.training.averaging import raw_stage
from ltat.training.checkpoints import restore, save_weights
from ltat.training.dominance import WARNING as DOMINANCE_WARNING
from ltat.training.dominance import distillation_dominates
from ltat.training.epoch_metrics import Row
from ltat.training.launch_report import describe_attack, describe_ranks, describe_update, given_up
from ltat.training.profiling import RECORDED, SKIPPED, StepTrace
from ltat.training.reporting import Reporter
from ltat.training.run_data import RunData, first_images
from ltat.training.run_folder import RunFolder, StageFiles
from ltat.training.stage import Stage
from ltat.training.state_writer import StateWriter, Timer
from ltat.training.trainer import Trainer
from ltat.training.validation import validate


def fit(
    stage: Stage, data: RunData, folder: RunFolder, files: StageFiles, reporter: Reporter, profile: bool = False
) -> None:
    """Run a stage's remaining epochs; with ``profile`` write a trace of a few steps, ``trace-STAGE.json``."""
    if not profile:
        return run_epochs(Trainer(stage, reporter.advance), data, folder, files, reporter)
    with StepTrace(folder.path / f"trace-{stage.name}.json", stage.device) as trace:
        run_epochs(Trainer(stage, trace.counting(reporter.advance)), data, folder, files, reporter)
    if not trace.written:
        reporter.say(f"{stage.name}: fewer than {SKIPPED + RECORDED} steps were left, so there is no trace")


def run_epochs(trainer: Trainer, data: RunData, folder: RunFolder, files: StageFiles, reporter: Reporter) -> None:
    """Run a trainer's remaining epochs.

    After each epoch the metrics are written first, then the state, then the weights. If a crash comes between two of
    these, :func:`restore` writes the missing ones again from the state. Within an epoch only the state is written.
    """
    stage = trainer.stage
    minutes = 0.0 if stage.unsaved else stage.config.train.checkpoint_minutes
    state = StateWriter(trainer, folder, files.state, *restore(trainer, data, folder, files), Timer(minutes))
    epochs, warned, reported = stage.config.train.epochs, False, given_up(trainer)
    announce(trainer, data, reporter)
    reporter.begin(stage.name, images_left(trainer))
    while trainer.epoch < epochs:
        row = trainer.run_epoch(state.write_if_due)
        row |= validated(trainer, data, row["epoch"])
        if row.get("score") is not None and row["score"] > state.best["score"]:
            state.best = row
        state.rows.append(row)
        with interrupts_wait():
            folder.append_metrics(row)
            state.write()
            save_weights(trainer, data, folder, files, state.rows, state.best)
        reporter.epoch(row, epochs)
        for part, why in given_up(trainer).items():
            if part not in reported:
                reporter.say(f"{stage.name}: {part} step by step: {why}")
        reported = given_up(trainer)
        if not warned and distillation_dominates(state.rows):
            reporter.say(DOMINANCE_WARNING)
            warned = True


def validated(trainer: Trainer, data: RunData, epoch: int) -> Row:
    """What validation adds to the metrics of an epoch, with the entry ``raw`` where the raw network is reported too."""
    row = validate(trainer.outcome, data, epoch)
    raw = raw_stage(trainer.stage)
    if raw is None:
        return row
    begun = trainer.outcome.model is not raw.model
    return {**row, "raw": validate(raw, data, epoch) if begun else row}


def announce(trainer: Trainer, data: RunData, reporter: Reporter) -> None:
    """Print how the steps of the stage will run."""
    stage = trainer.stage
    reporter.say(f"{stage.name}: loader {stage.loader.why}")
    reporter.say(f"{stage.name}: attack on {describe_attack(trainer, data)}")
    if stage.ranks.size > 1:
        reporter.say(f"{stage.name}: {describe_ranks(stage)}")
    if trainer.network.graphs is not None:
        reporter.say(f"{stage.name}: update {describe_update(trainer)}")
    for remark in stage.method.remarks(first_images(data, 1, stage.device)):
        reporter.say(f"{stage.name}: {remark}")
    if stage.unsaved and stage.config.train.checkpoint_minutes:
        what = f"the state_dict() of {type(stage.method).__name__} lacks its attribute {stage.unsaved!r}"
        reporter.say(f"{stage.name}: no state is written within an epoch, because {what}")


def images_left(trainer: Trainer) -> int:
    """The images that the rest of the stage trains on."""
    loader = trainer.stage.loader
    epochs = range(trainer.epoch + 1, trainer.stage.config.train.epochs + 1)
    images = sum(min(loader.steps(epoch) * loader.batch_size, loader.plan.size(epoch)) for epoch in epochs)
    return images - trainer.metrics.steps * loader.batch_size
