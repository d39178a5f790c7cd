"""A run from settings to report: data, teacher stage where the method has one, student stage, evaluation."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ltat import __version__
from ltat.config import RunConfig
from ltat.data import Split
from ltat.evaluation import Evaluation, evaluate
from ltat.evaluation.attacks import parse_attack
from ltat.methods import find_method
from ltat.models import build_model, load_model, save_model
from ltat.seeding import torch_generator
from ltat.training.environment import determinism, environment_record, pick_device
from ltat.training.reporting import Reporter
from ltat.training.run_folder import STUDENT_FILES, TEACHER_FILES, Row, RunFolder, StageFiles
from ltat.training.schedule import learning_rate
from ltat.training.task import TaskData, build_loader, index_record, load_data, pixel_statistics, resolve
from ltat.training.trainer import Stage, Trainer

KD_RATIO_LIMIT = 5.0  # above it IGDM's authors saw training collapse (a teacher that is not locally linear)
KD_WARNING = (
    f"warning: the distillation term is more than {KD_RATIO_LIMIT:g} times the classification loss (kd_ratio in "
    "metrics.jsonl); should accuracy collapse, lower kd.alpha or use a teacher trained adversarially"
)
SELECTED_ON_TEST = "the best checkpoint was selected on the test set, as the papers do: its figures are optimistic"


@dataclass(frozen=True, eq=False)
class Plan:
    """A run whose every part is built and checked, before anything is written."""

    config: RunConfig
    data: TaskData
    student: Stage
    teacher: Stage | None


def train(
    config: RunConfig, out: str | Path, *, resume: bool = False, reporter: Reporter | None = None
) -> dict[str, Evaluation]:
    """Train by ``config`` into the run folder ``out`` and evaluate the result on the test set.

    Everything is checked before the folder is made, so wrong use leaves nothing behind. An interrupted run goes
    on with ``resume=True`` from its last complete epoch and, on a CPU, ends bit-identical to an uninterrupted one.

    Args:
        config: settings, as from :func:`ltat.config.load_config`.
        out: the run folder; it must not hold another run.
        resume: continue the run that stands there.
        reporter: where progress is shown; a new one on standard error when left out.

    Returns:
        The evaluations of the teacher, the best and the last student, as they stand in ``report.json``.

    Raises:
        LtatError: settings, data or files that cannot be used.
    """
    plan = prepare(config)
    folder = RunFolder(Path(out))
    folder.open(plan.config, resume)
    folder.write_json("env.json", environment_record(plan.student.device))
    folder.write_json("indices.json", index_record(plan.data, plan.config))
    with reporter or Reporter() as shown, determinism(plan.config.train.deterministic):
        if plan.teacher is not None:
            train_teacher(plan, folder, shown)
        plan.student.method.prepare_model(plan.student.model)
        fit(plan.student, plan.data, folder, STUDENT_FILES, shown)
        return write_report(plan, folder, shown)


def prepare(config: RunConfig) -> Plan:
    """Load the data and build every part of the run.

    Raises:
        LtatError: the first thing that would stop the run later.
    """
    config = resolve(config)
    check_names(config)
    device = pick_device(config.train.device)
    data = load_data(config)
    method = find_method(config.method)
    config = method.resolve(config, data.train.num_classes)
    teacher_path = getattr(getattr(config, "teacher", None), "path", None)
    teacher_config = None if teacher_path else method.teacher_config(config)
    if teacher_config is not None:
        check_names(teacher_config)
    teacher_stage = build_stage("teacher", teacher_config, data, device) if teacher_config else None
    teacher = teacher_stage.model if teacher_stage else load_teacher(teacher_path, device)
    student = build_stage("student", config, data, device, teacher)
    student.method.prepare_model(copy.deepcopy(student.model))  # fails now rather than after the teacher's training
    return Plan(config, data, student, teacher_stage)


def check_names(config: RunConfig) -> None:
    """Look up what is otherwise looked up only late in a run.

    Raises:
        LtatError: an unknown attack of evaluation or selection, or an unknown schedule.
    """
    for name in (*config.eval.attacks, config.select.metric or "clean"):
        parse_attack(name)
    learning_rate(config.lr, config.optim.lr, 1, config.train.epochs)


def load_teacher(path: str | None, device: torch.device) -> nn.Module | None:
    """The teacher of a checkpoint, where one is named, in the memory layout of training."""
    return load_model(path, device=device).to(memory_format=torch.channels_last) if path else None


def build_stage(
    name: str, config: RunConfig, data: TaskData, device: torch.device, teacher: nn.Module | None = None
) -> Stage:
    """Model, method and loader of one stage; the initial weights depend on the training seed and the stage only."""
    images = data.train.images
    normalize = pixel_statistics(data.train) if config.model.normalize == "train" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_generator(config.seed.train, f"{name}/init").initial_seed())
        model = build_model(
            config.model.name,
            num_classes=data.train.num_classes,
            in_channels=images.shape[-1],
            normalize=normalize,
        )
    model = model.to(device).to(memory_format=torch.channels_last)
    counts = torch.as_tensor(data.train.counts, device=device)
    method = find_method(config.method)(config, counts, teacher)
    return Stage(name, config, model, method, build_loader(data.train, config, device), device)


def train_teacher(plan: Plan, folder: RunFolder, reporter: Reporter) -> None:
    """Train the teacher stage and leave its model with the weights to distil from, saved as ``teacher``."""
    stage, settings = plan.teacher, getattr(plan.config, "teacher", None)
    assert stage is not None and settings is not None
    stage.model.requires_grad_(True)  # the student's method, built before, has frozen it
    fit(stage, plan.data, folder, TEACHER_FILES, reporter)
    if settings.ckpt == "best":
        best = load_model(folder.path / TEACHER_FILES.best)
        stage.model.load_state_dict(best.state_dict())
        save_checkpoint(stage, plan.data, folder, TEACHER_FILES.last, {"epoch": "best"})
    stage.model.train(settings.mode == "train").requires_grad_(False)


def fit(stage: Stage, data: TaskData, folder: RunFolder, files: StageFiles, reporter: Reporter) -> None:
    """Run a stage's remaining epochs: train, validate, save the last and the best, record the figures."""
    trainer = Trainer(stage, reporter.advance)
    best = restore(trainer, folder, files)
    epochs, warned = stage.config.train.epochs, False
    reporter.begin(stage.name, (epochs - trainer.epoch) * len(stage.loader) * stage.loader.batch_size)
    while trainer.epoch < epochs:
        row = trainer.run_epoch()
        row |= validate(stage, data, row["epoch"])
        save_checkpoint(stage, data, folder, files.last, row)
        if row.get("score") is not None and row["score"] > best["score"]:
            best = {"score": row["score"], "epoch": row["epoch"]}
            save_checkpoint(stage, data, folder, files.best, row)
        folder.append_metrics(row)
        folder.save_state(files.state, {**trainer.state_dict(), "best": best})
        reporter.epoch(row, epochs)
        if dominates(row) and not warned:
            reporter.say(KD_WARNING)
            warned = True


def restore(trainer: Trainer, folder: RunFolder, files: StageFiles) -> Row:
    """Take up a stage where its folder left it; returns the best score so far and its epoch."""
    state = folder.load_state(files.state)
    if state is not None:
        trainer.load_state_dict(state)
    folder.forget_metrics_after(trainer.stage.name, trainer.epoch)
    return state["best"] if state else {"score": -1.0, "epoch": 0}


def validate(stage: Stage, data: TaskData, epoch: int) -> Row:
    """The score by which the best checkpoint is chosen, in percent; nothing in epochs that do not compete.

    On held-out images, imbalanced as the training set, it is the balanced robust accuracy (the mean over classes);
    on the balanced test set of the papers the two are one.
    """
    select = stage.config.select
    competes = epoch >= select.from_epoch and (epoch % select.every == 0 or epoch == stage.config.train.epochs)
    if select.set == "none" or not competes:
        return {}
    split = data.val if data.val is not None else data.dataset.test
    metric = select.metric or "pgd10"
    measured = evaluate_stage(stage, split, ("clean", metric)).to_json()
    label = f"{select.set}_{metric}"
    return {
        "select": label,
        "score": measured[metric]["balanced"],
        "val": {name: {k: measured[name][k] for k in ("overall", "balanced")} for name in ("clean", metric)},
    }


def evaluate_stage(stage: Stage, split: Split, attacks: tuple[str, ...]) -> Evaluation:
    """Evaluate a stage's network as it is deployed, under the threat model of its training."""
    return evaluate(
        stage.method.deployed(stage.model),
        split,
        attacks=attacks,
        threat=stage.method.threat,
        batch_size=stage.config.eval.batch_size,
        seed=stage.config.seed.train,
        device=stage.device,
        precision=stage.config.train.precision,
    )


def dominates(row: Row) -> bool:
    """Whether alpha * L_KD has outgrown L_BSL, the mark of a teacher that is not locally linear."""
    return row.get("kd_ratio", 0.0) > KD_RATIO_LIMIT


def save_checkpoint(stage: Stage, data: TaskData, folder: RunFolder, name: str, row: Row) -> None:
    """Write the stage's weights and their card."""
    config = stage.config
    extra = {
        "ltat": __version__,
        "stage": stage.name,
        "method": config.method,
        "epoch": row["epoch"],
        "dataset": config.data.name,
        "imbalance_ratio": config.data.imbalance_ratio,
        "subset_seed": config.seed.subset,
        "train_counts": data.dataset.train.counts.tolist(),
        "threat_model": {"norm": config.attack.norm, "eps": config.attack.eps},
        "select": config.select.set,
        "score": row.get("score"),
    }
    save_model(stage.model, folder.path / name, extra=extra, class_names=data.dataset.class_names)


def write_report(plan: Plan, folder: RunFolder, reporter: Reporter) -> dict[str, Evaluation]:
    """Evaluate the teacher, the best and the last student on the test set into ``report.json``."""
    names = {"teacher": TEACHER_FILES.last, "best": STUDENT_FILES.best, "last": STUDENT_FILES.last}
    found = {role: name for role, name in names.items() if (folder.path / f"{name}.safetensors").exists()}
    report = {role: evaluate_checkpoint(plan, folder, role, name, reporter) for role, name in found.items()}
    if plan.config.select.set == "test" and "best" in report:
        report["best"] = replace(report["best"], flags=[*report["best"].flags, SELECTED_ON_TEST])
    folder.write_json("report.json", {role: evaluation.to_json() for role, evaluation in report.items()})
    return report


def evaluate_checkpoint(plan: Plan, folder: RunFolder, role: str, name: str, reporter: Reporter) -> Evaluation:
    """One checkpoint of the run on the test set, by the ``eval`` settings."""
    config = plan.config
    return evaluate(
        load_model(folder.path / name, device=plan.student.device),
        plan.data.dataset,
        attacks=config.eval.attacks,
        threat=plan.student.method.threat,
        train_counts=plan.data.dataset.train.counts.tolist(),
        n_examples=config.eval.n_examples,
        batch_size=config.eval.batch_size,
        seed=config.seed.train,
        device=plan.student.device,
        name=role,
        state_dir=folder.path / "evaluation" / role,
        on_progress=reporter.evaluation,
    )
