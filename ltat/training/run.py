"""A run from settings to report: data, teacher stage where the method has one, student stage, evaluation."""

import copy
import hashlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ltat.config import Asked, RunConfig
from ltat.data.loaders.dataloader import dead_workers_reported
from ltat.evaluation import Evaluation, evaluate
from ltat.evaluation.adjustment import CORRECTED_TWICE
from ltat.evaluation.flags import SELECTED_ON_TEST
from ltat.evaluation.remarks import remarks
from ltat.files import read_bytes
from ltat.methods.teachers import teacher_settings
from ltat.models import load_weights, read_card
from ltat.ranks import ALONE, Ranks
from ltat.torchrun import launch_name, restarts
from ltat.training.checkpoints import require_best_teacher, save_checkpoint, saved_row
from ltat.training.environment import determinism, environment_record
from ltat.training.epoch_metrics import Row
from ltat.training.fitting import fit
from ltat.training.index_record import index_record
from ltat.training.preparing import PreparedRun, prepare
from ltat.training.reporting import Reporter, reporter_of
from ltat.training.run_folder import STUDENT_FILES, TEACHER_FILES, UNSAVED, RunFolder, SharedRunFolder
from ltat.training.run_lock import locked, require_unlocked, was_held_by
from ltat.training.stage import Stage
from ltat.training.teacher import is_published, teacher_path
from ltat.training.teacher_run import finished_stage, take_over
from ltat.training.validation import adjustment, corrects_prior


def train(
    settings: Asked[RunConfig] | RunConfig,
    out: str | Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    teacher: nn.Module | None = None,
    teacher_run: str | Path | None = None,
    profile: bool = False,
    ranks: Ranks = ALONE,
) -> dict[str, Evaluation]:
    """Train by ``settings`` into the run folder ``out`` and evaluate the result on the test set.

    Everything is checked before the folder is created, so wrong use leaves no files. With ``resume=True`` an
    interrupted run continues from its newest state; on a CPU its bits are those of an uninterrupted run.

    Args:
        settings: the result of :func:`ltat.config.load_config`, or settings made in Python.
        out: the run folder; it must not hold another run, and is locked until this run ends.
        resume: continue the run in that folder.
        reporter: shows the progress; by default a new one on standard error.
        teacher: images [B, ch, H, W] in [0, 1] → logits [B, C], for a distillation method, instead of
            ``teacher.path``. The run copies it and does not change it. To resume, pass it again.
        teacher_run: the folder of :func:`ltat.training.train_teacher_alone` with the same teacher stage; a run that has
            not begun its own takes it over.
        profile: write a Chrome trace of a few steps of each stage into the folder, ``trace-STAGE.json``.
        ranks: the processes that share each batch, started by torchrun (:func:`ltat.ranks.ranks_of_torchrun`); all of
            them call this function, and rank 0 writes.

    Returns:
        The evaluations of the teacher, the best and the last student, as in ``report.json``, by the names of the
        checkpoints.

    Raises:
        LtatError: settings, data or files that cannot be used.
    """
    with reporter or reporter_of(ranks) as shown:
        folder = (RunFolder if ranks.leads else SharedRunFolder)(Path(out), shown.say)
        restarted = begun_before(folder.path, ranks)
        resume = resume or restarted
        if ranks.leads:
            folder.require_vacant(resume)
            require_unlocked(folder.path)
        run = prepare(settings, shown.evaluation, teacher, ranks)
        where = run.student.device, run.config.train.precision
        for line in remarks(run.data.dataset, run.config.eval.attacks, run.student.method.threat.norm, *where):
            shown.say(line)
        ready = None
        if teacher_run is not None and not (folder.path / TEACHER_FILES.state).exists():
            ready = finished_stage(run, Path(teacher_run)), Path(teacher_run)
        launch = launch_name() if restarted else ""
        with locked(folder.path, shown.say, launch) if ranks.leads else nullcontext() as sign:
            record = index_record(run.data, run.config, given_networks(run.config, teacher))
            open_together(folder, run, record, resume, ranks, sign)
            folder.record_environment(environment_record(run.student.device, ranks))
            if ready is not None and ranks.leads:
                take_over(*ready, folder)
            ranks.meet()
            return run_stages(run, folder, shown, profile and ranks.leads)


def begun_before(folder: Path, ranks: Ranks) -> bool:
    """Whether torchrun has restarted the ranks, and their run stands in the folder."""
    return bool(ranks.told(ranks.leads and restarts() > 0 and was_held_by(folder, launch_name())))


def open_together(
    folder: RunFolder, run: PreparedRun, record: Row, resume: bool, ranks: Ranks, sign: Callable[[str], None] | None
) -> None:
    """Open the folder on every rank, on rank 0 first.

    That one has locked it, and ``sign`` writes the launch into it once it is sure that no other run stands there.
    """
    with ranks.leader_first():
        if sign is not None:
            folder.require_vacant(resume)
            if ranks.size > 1:
                sign(launch_name())
        folder.open(run.config, run.data.train.num_classes, record, resume)


def run_stages(run: PreparedRun, folder: RunFolder, reporter: Reporter, profile: bool = False) -> dict[str, Evaluation]:
    """Train the teacher if the run has a teacher stage, then the student, and evaluate them."""
    with determinism(run.config.train.deterministic), dead_workers_reported():
        if run.teacher is not None:
            train_teacher(run.teacher, run, folder, reporter, profile)
        fit(run.student, run.data, folder, STUDENT_FILES, reporter, profile)
    run.student.ranks.meet()  # what rank 0 writes is read by all
    return write_report(run, folder, reporter)


def given_networks(config: RunConfig, handed: nn.Module | None = None) -> dict[str, str | None]:
    """The checksums of the weights that the run does not train: the teacher's, and those it starts from."""
    teacher = weights_sha256(handed) if handed is not None else file_sha256(teacher_path(config))
    unsaved = unsaved_sha256(handed) if handed is not None else None
    return {"teacher": teacher, UNSAVED: unsaved, "weights": file_sha256(config.model.weights)}


def file_sha256(path: str | None) -> str | None:
    """The checksum on the card of the saved model ``path``, or of a published file; ``None`` without a path."""
    if path and is_published(path):
        return hashlib.sha256(read_bytes(path)).hexdigest()
    return read_card(path).sha256 if path else None


def weights_sha256(module: nn.Module) -> str:
    """A checksum of the names and values of a module's parameters and persistent buffers."""
    return tensors_sha256(module.state_dict())


def unsaved_sha256(module: nn.Module) -> str | None:
    """A checksum of the buffers that a module does not save, such as the mean of a normalisation; ``None`` without."""
    saved = module.state_dict()
    unsaved = {name: buffer for name, buffer in module.named_buffers() if name not in saved}
    return tensors_sha256(unsaved) if unsaved else None


def tensors_sha256(tensors: Mapping[str, object]) -> str:
    """A checksum of the names, types, shapes and values of tensors; other values are ignored."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def train_teacher(stage: Stage, run: PreparedRun, folder: RunFolder, reporter: Reporter, profile: bool = False) -> None:
    """Train the teacher stage. Afterwards its model has the weights to distil from, saved as ``teacher``.

    These are the average's where the stage has one, and those of the last epoch or of the best one.
    """
    settings = teacher_settings(run.config)
    assert settings is not None
    stage.model.requires_grad_(True)  # building the student's method has frozen it
    fit(stage, run.data, folder, TEACHER_FILES, reporter, profile)
    stage.ranks.meet()
    if settings.ckpt == "best":
        row = saved_row(require_best_teacher(folder))
        load_weights(stage.model, folder.path / TEACHER_FILES.best)
        save_checkpoint(stage, run.data, folder, TEACHER_FILES.last, row, best=True)
    elif stage.config.average.kind != "none":
        load_weights(stage.model, folder.path / TEACHER_FILES.last)
    stage.model.train(settings.mode == "train").requires_grad_(False)


def write_report(run: PreparedRun, folder: RunFolder, reporter: Reporter) -> dict[str, Evaluation]:
    """Evaluate the teacher, the best and the last student on the test set and write ``report.json``.

    Where the raw network is reported beside the average, so are its best and its last weights.
    """
    names = (STUDENT_FILES.best, STUDENT_FILES.last, STUDENT_FILES.raw_best, STUDENT_FILES.raw_last)
    report = {}
    if run.teacher is not None and run.config.eval.teacher:
        report["teacher"] = evaluate_checkpoint(run, run.teacher, folder, "teacher", TEACHER_FILES.last, reporter)
    for name in names:
        if (folder.path / f"{name}.safetensors").exists():
            report[name] = evaluate_checkpoint(run, run.student, folder, name, name, reporter)
    folder.write_json("report.json", {role: evaluation.to_json() for role, evaluation in report.items()})
    return report


def evaluate_checkpoint(
    run: PreparedRun, stage: Stage, folder: RunFolder, role: str, name: str, reporter: Reporter
) -> Evaluation:
    """Evaluate one checkpoint of the run on the test set, by the ``eval`` settings."""
    config = run.config
    network = copy.deepcopy(stage.model)
    load_weights(network, folder.path / name)
    evaluation = evaluate(
        network,
        run.data.dataset,
        attacks=config.eval.attacks,
        threat=stage.method.threat,
        train_counts=run.data.dataset.train.counts.tolist(),
        adjust=adjustment(stage, run.data),
        n_examples=None if config.eval.n_examples == "all" else config.eval.n_examples,
        batch_size=config.eval.batch_size,
        seed=config.seed.train,
        device=stage.device,
        name=role,
        state_dir=folder.path / "evaluation" / role,
        on_progress=reporter.evaluation,
        ranks=stage.ranks,
    )
    extra = read_card(folder.path / name).extra
    selected = [SELECTED_ON_TEST] if extra.get("best") and extra.get("select") == "test" else []
    twice = [CORRECTED_TWICE] if evaluation.adjust and corrects_prior(stage) else []
    return replace(evaluation, flags=[*evaluation.flags, *selected, *twice])
