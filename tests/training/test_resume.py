"""An interrupted run ends as an uninterrupted one, bit for bit (on a CPU)."""

import io
import json
import shutil
from pathlib import Path
from typing import Literal

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from ltat.config import RunConfig
from ltat.errors import LtatError
from ltat.methods import METHODS, LossTerms, Method
from ltat.models import save_model
from ltat.training import Trainer, prepare, train
from ltat.training.reporting import Reporter
from ltat.training.run import train_teacher
from ltat.training.run_folder import TEACHER_FILES, RunFolder
from ltat.training.state_file import write_state
from ltat.training.trainer_state import load_state, state_of
from tests.training.tiny import saved_state, tiny_config

TIMINGS = {"seconds", "images_per_s"}


class Interrupting(Reporter):
    """Stops the run like Ctrl-C in the middle of an epoch, ``steps`` steps after the run's start."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def advance(self, images: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        super().advance(images)


def metrics(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMINGS} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("teacher", "best", "last", "raw-best", "raw-last"):
        if (one / f"{name}.safetensors").exists():
            assert (one / f"{name}.safetensors").read_bytes() == (other / f"{name}.safetensors").read_bytes()
    assert metrics(one) == metrics(other)
    assert json.loads((one / "report.json").read_text()) == json.loads((other / "report.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    train(tiny_config(), folder)
    return folder


@pytest.mark.parametrize("steps", [0, 13, 30, 41, 47])
def test_a_run_stopped_anywhere_and_resumed_equals_the_whole_run(steps: int, uninterrupted: Path, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(), tmp_path, reporter=Interrupting(steps))
    train(tiny_config(), tmp_path, resume=True)
    assert_same_run(uninterrupted, tmp_path)


def test_the_stops_above_fall_into_both_stages(uninterrupted: Path):
    rows = metrics(uninterrupted)
    assert [(row["stage"], row["epoch"]) for row in rows] == [("teacher", 1), ("teacher", 2)] + [
        ("student", epoch) for epoch in (1, 2, 3)
    ]


def test_resuming_a_finished_run_changes_nothing(uninterrupted: Path):
    before = load_file(uninterrupted / "last.safetensors")
    train(tiny_config(), uninterrupted, resume=True)
    after = load_file(uninterrupted / "last.safetensors")
    assert all(before[name].equal(after[name]) for name in before)


def test_resuming_where_nothing_stands_starts_a_run(tmp_path: Path):
    train(tiny_config("method=at-bsl", "train.epochs=1"), tmp_path / "new", resume=True)
    assert (tmp_path / "new" / "report.json").exists()


@pytest.mark.parametrize("name", ["teacher", "last", "best"])
def test_weights_broken_by_an_accident_are_written_again_from_the_state(name: str, uninterrupted: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    if name != "best" or json.loads((folder / "best.json").read_text())["extra"]["epoch"] == 3:
        (folder / f"{name}.safetensors").write_bytes(b"broken")
    train(tiny_config(), folder, resume=True)
    assert_same_run(uninterrupted, folder)


def test_a_run_goes_on_from_the_state_before_a_damaged_one_and_ends_the_same(uninterrupted: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    for name in ("state.pt", "teacher-state.pt"):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
    (folder / "metrics.jsonl").unlink()  # its lines stand in the states
    lines = io.StringIO()
    train(tiny_config(), folder, resume=True, reporter=Reporter(Console(file=lines)))
    assert lines.getvalue().count("its checksum is wrong") == 2
    assert_same_run(uninterrupted, folder)


def test_a_folder_of_a_version_without_checksums_is_resumed(uninterrupted: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    for name, source in (("state.pt", "state-before.pt"), ("teacher-state.pt", "teacher-state.pt")):
        old = saved_state(folder, source)
        old["row"] = old.pop("rows")[-1]
        del old["run"], old["running"], old["stage"]
        torch.save(old, folder / name)
    for path in folder.glob("*-before.pt"):
        path.unlink()
    train(tiny_config(), folder, resume=True)
    assert_same_run(uninterrupted, folder)


def test_a_best_teacher_whose_card_names_no_epoch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = prepare(tiny_config("teacher.ckpt=best"))
    assert plan.teacher is not None
    save_model(plan.teacher.model, tmp_path / TEACHER_FILES.best, extra={})
    monkeypatch.setattr("ltat.training.run.fit", lambda *_: None)
    with pytest.raises(LtatError, match=r"the card of .* names no epoch \(None\)"):
        train_teacher(plan.teacher, plan, RunFolder(tmp_path), Reporter(Console(file=io.StringIO())))


def test_a_best_teacher_that_is_damaged_or_lost_is_trained_again_as_the_errors_say(tmp_path: Path):
    settings = tiny_config("teacher.ckpt=best", "train.epochs=1")
    train(settings, tmp_path)
    teacher, best = tmp_path / "teacher.safetensors", tmp_path / "teacher-best.safetensors"
    expected = teacher.read_bytes()
    state = saved_state(tmp_path, "teacher-state.pt")
    state["best"] = state["rows"][0]  # the best weights are not the newest, which the state would write again
    write_state(tmp_path / "teacher-state.pt", state)
    best.write_bytes(b"damaged")
    with pytest.raises(LtatError, match=r"teacher-best.safetensors .*checksum.*; .* delete it to go on without"):
        train(settings, tmp_path, resume=True)
    best.unlink()
    with pytest.raises(LtatError, match=r"teacher-best.safetensors, which is lost") as refused:
        train(settings, tmp_path, resume=True)
    for name in ("teacher-state.pt", "teacher-state-before.pt"):
        assert name in str(refused.value)
        (tmp_path / name).unlink()
    train(settings, tmp_path, resume=True)
    assert teacher.read_bytes() == expected and best.exists()


def test_best_weights_that_cannot_be_the_runs_are_told_before_it_goes_on(uninterrupted: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(uninterrupted, folder)
    state = saved_state(folder)
    state["best"] = state["rows"][0]  # whichever was the best, it is not the newest
    write_state(folder / "state.pt", state)
    shutil.copy(folder / "last.safetensors", folder / "best.safetensors")
    shutil.copy(folder / "last.json", folder / "best.json")
    with pytest.raises(LtatError, match="is of epoch 3 and the best was 1"):
        train(tiny_config(), folder, resume=True)
    (folder / "best.safetensors").write_bytes(b"damaged")
    with pytest.raises(LtatError, match="checksum"):
        train(tiny_config(), folder, resume=True)
    (folder / "best.safetensors").unlink()
    lines = io.StringIO()
    assert set(train(tiny_config(), folder, resume=True, reporter=Reporter(Console(file=lines)))) == {"teacher", "last"}
    assert "of epoch 1 is lost" in lines.getvalue()


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda state: state["optimizer"]["state"][0].update(momentum_buffer=torch.ones(2)), "momentum"),
        (lambda state: state["optimizer"].update(state=[1]), "not of this run"),
        (lambda state: state["rows"][-1].update(stage="teacher"), "stage 'teacher'"),
        (lambda state: state["scaler"].update({"x": 1}) or state.update(method=[3]), "not of this run"),
    ],
)
def test_a_state_with_odd_contents_is_refused(spoil, why: str, uninterrupted: Path, tmp_path: Path, monkeypatch):
    shutil.copytree(uninterrupted, tmp_path / "run")
    monkeypatch.setattr(Method, "load_state_dict", lambda method, state: dict(state.items()))
    state = saved_state(tmp_path / "run")
    spoil(state)
    write_state(tmp_path / "run" / "state.pt", state)
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    with pytest.raises(LtatError, match=why):
        train(tiny_config(), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


def test_a_state_of_another_network_is_refused(uninterrupted: Path, tmp_path: Path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    for name in ("state.pt", "teacher-state.pt"):
        write_state(tmp_path / "run" / name, saved_state(tmp_path / "run", name) | {"run": {}})
    text = (tmp_path / "run" / "config.toml").read_text().replace('"small"', '"resnet18"')
    (tmp_path / "run" / "config.toml").write_text(text)
    with pytest.raises(LtatError, match="not of this run"):
        train(tiny_config("model.name=resnet18"), tmp_path / "run", resume=True)


class Counting(Method):
    """Its loss depends on what it counted, and its network is not the plain one: hooks and state must be kept."""

    def __init__(self, config, class_counts, teacher=None):
        super().__init__(config, class_counts, teacher)
        self.seen: dict[str, int] = {"begin": 0, "end": 0, "attack": 0}

    def prepare_model(self, model):
        model.replace_classifier(torch.nn.Linear(model.classifier.in_features, 10, bias=False))
        return model

    def begin_epoch(self, epoch):
        self.seen["begin"] += 1

    def end_epoch(self, epoch):
        self.seen["end"] += 1

    def attack(self, step):
        self.seen["attack"] += 1
        return super().attack(step)

    def loss(self, step):
        logits = step.model(step.x_adv)
        weight = 1 + 0.01 * self.seen["attack"] + 0.1 * self.seen["end"] + 0.1 * self.seen["begin"]
        return LossTerms(weight * torch.nn.functional.cross_entropy(logits, step.batch.labels), logits, {})

    def state_dict(self):
        return dict(self.seen)

    def load_state_dict(self, state):
        self.seen = dict(state)


class CountingConfig(RunConfig):
    """Settings of the method above."""

    method: Literal["counting"] = "counting"


Counting.Config = CountingConfig


def test_a_method_with_hooks_state_and_its_own_classifier_resumes(tmp_path, monkeypatch):
    monkeypatch.setitem(METHODS, "counting", Counting)
    whole = train(tiny_config("method=counting"), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config("method=counting"), tmp_path / "parts", reporter=Interrupting(10))
    train(tiny_config("method=counting"), tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    state = saved_state(tmp_path / "whole")["method"]
    assert state == {"begin": 3, "end": 3, "attack": 3 * 6}
    assert set(whole) == {"best", "last"}


def test_the_loss_scale_of_fp16_survives_an_interruption():
    plan = prepare(tiny_config("method=at-bsl", "train.precision=fp16"))
    trainer, again = Trainer(plan.student), Trainer(plan.student)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.scaler.scale(torch.ones(1))
    load_state(again, state_of(trainer))
    assert again.scaler.state_dict()["scale"] == 8.0


def test_a_first_step_that_fp16_overflows_leaves_no_trace():
    trainer = Trainer(prepare(tiny_config("method=at-bsl", "train.precision=fp16")).student)
    trainer.scaler.scale(torch.ones(1))  # it has no scale before
    before = [p.detach().clone() for p in trainer.stage.model.parameters()]
    for gradient in (torch.inf, trainer.scaler.get_scale() / 2):  # the second is 1 at the halved scale
        for p in trainer.stage.model.parameters():
            p.grad = torch.full_like(p, gradient)
        trainer.scaler.step(trainer.optimizer)
        trainer.scaler.update()
    for p, w in zip(trainer.stage.model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), w - 0.1 * (1 + 5e-4 * w))


def test_a_half_precision_run_resumes_with_its_loss_scale(tmp_path: Path):
    settings = ("method=at-bsl", "train.precision=fp16", "train.epochs=2")
    train(tiny_config(*settings), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(*settings), tmp_path / "parts", reporter=Interrupting(9))
    train(tiny_config(*settings), tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
