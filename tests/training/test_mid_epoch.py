"""A run killed within an epoch loses the minutes since its last state, and ends as one that was never stopped."""

import copy
import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.utils._pytree import tree_flatten

from ltat.config import Asked, RunConfig
from ltat.errors import LtatError
from ltat.methods import METHODS, Method
from ltat.training import Trainer, train
from ltat.training.checkpoints import NOTHING_YET
from ltat.training.method_state import lost_within_epoch, plain_attributes
from ltat.training.reporting import Reporter
from ltat.training.run_folder import RunFolder
from ltat.training.stage import Stage
from ltat.training.state_file import State, read_state, write_state
from ltat.training.state_writer import StateWriter, Timer
from ltat.training.trainer_state import load_state, state_of
from tests.engine.test_captured_update import stage_of
from tests.training.test_resume import Counting as CountingMethod
from tests.training.test_resume import Interrupting, assert_same_run, metrics
from tests.training.tiny import saved_state, tiny_config

QUICK = ("train.graph=false", "attack.steps=1")
OPTIONS = [
    "at-bsl train.drop_last=true awp.gamma=0.01",
    "at-bsl average.kind=ema average.decay=0.5 average.bn=recompute average.start=1",
    "at-bsl average.kind=swa average.bn=recompute average.start=1",
    "pgd-at pgd_at.clean_forward=true data.sampling=balanced db.resample=per_epoch radius.share=0.3",
    "reat attack.mode=train",
    "dafa dafa.warmup=0.5 radius.share=0.3",
    "self-distill teacher.train=ema average.kind=ema average.decay=0.5 kd.form=kl_clean",
    "self-distill teacher.mode=train train.precision=bf16",
]


class Killed(Exception):
    """The process ends here."""


def train_until(trainer: Trainer, step: int) -> None:
    """Take the steps of an epoch before ``step``, and end in the middle of it."""

    def before_step() -> None:
        if trainer.metrics.steps == step:
            raise Killed

    with pytest.raises(Killed):
        trainer.run_epoch(before_step)


def written(trainer: Trainer, path: Path, rows: list[dict[str, Any]]) -> State:
    write_state(path, {**state_of(trainer), "rows": rows, "best": NOTHING_YET})
    return read_state(path)


def in_pieces(stage: Stage, stops: list[list[int]], path: Path) -> tuple[Trainer, list[dict[str, Any]]]:
    """Train each epoch with a state at each of its stops, killed a step later; every piece in new objects."""
    rows: list[dict[str, Any]] = []
    trainer = Trainer(copy.deepcopy(stage))
    for steps in stops:
        for step in steps:
            train_until(trainer, step)
            state = written(trainer, path, rows)
            train_until(trainer, step + 1)
            trainer = Trainer(copy.deepcopy(stage))
            load_state(trainer, state)
        rows.append(trainer.run_epoch())
    return trainer, rows


def weights_and_state(trainer: Trainer) -> State:
    return {name: part for name, part in state_of(trainer).items() if name != "running"}


def same(one: object, other: object) -> bool:
    return one.equal(other) if isinstance(one, torch.Tensor) else one == other


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s")} for row in rows]


@pytest.mark.parametrize("settings", [*METHODS, *OPTIONS])
def test_every_method_goes_on_from_the_middle_of_its_epochs_with_the_same_bits(settings: str, tmp_path: Path):
    stage = stage_of(*f"method={settings}".split(), *QUICK)
    assert stage.loader.steps(1) > 4
    whole, rows = in_pieces(stage, [[], []], tmp_path / "whole.pt")
    pieces, found = in_pieces(stage, [[1, 3], [2]], tmp_path / "pieces.pt")
    assert untimed(found) == untimed(rows)
    assert list(found[1]) == list(rows[1])
    (found, shape), (expected, expected_shape) = (
        tree_flatten(weights_and_state(trainer)) for trainer in (pieces, whole)
    )
    assert shape == expected_shape and all(map(same, found, expected))


class EverySteps(Timer):
    """A state is due after every two steps, not minutes; with 0 never."""

    def __init__(self, minutes: float) -> None:
        self.never = minutes == 0
        self.start()

    def start(self) -> None:
        self.steps = 0

    def is_over(self) -> bool:
        self.steps += 1
        return self.steps == 2 and not self.never


@pytest.fixture
def state_every_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltat.training.fitting.Timer", EverySteps)


class Observing(Reporter):
    """Keeps what the progress bar is told, and the newest weights when the stage goes on."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.totals: dict[str, int] = {}
        self.done: Counter[str] = Counter()
        self.weights: dict[str, bytes] = {}

    def begin(self, stage: str, total: int) -> None:
        super().begin(stage, total)
        self.totals[stage] = total
        path = self.folder / "last.safetensors"
        self.weights[stage] = path.read_bytes() if path.exists() else b""

    def advance(self, images: int) -> None:
        super().advance(images)
        self.done[self._stage] += images


def kill(folder: Path, settings: Asked[RunConfig], steps: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(settings, folder, resume=True, reporter=Interrupting(steps))


def place(folder: Path, name: str) -> tuple[int, int, int]:
    state = saved_state(folder, name)
    return state["epoch"], state["running"]["steps"], len(state["rows"])


SHORT = ("train.epochs=2", "train.drop_last=false", "select.metric=pgd1", "eval.attacks=['clean']")
TAUGHT = ("teacher.epochs=1", "teacher.batch_size=128")
EMA = ("average.kind=ema", "average.decay=0.5")


@pytest.mark.usefixtures("state_every_two_steps")
def test_a_run_killed_again_and_again_in_both_stages_equals_the_whole_run(tmp_path: Path):
    settings, folder = tiny_config(*TAUGHT, *SHORT, *EMA), tmp_path / "parts"
    kill(folder, settings, 3)
    assert place(folder, "teacher-state.pt") == (0, 2, 0)
    kill(folder, settings, 2)
    assert place(folder, "teacher-state.pt") == (0, 3, 0)
    assert not (folder / "metrics.jsonl").exists() and not list(folder.glob("*.safetensors"))
    kill(folder, settings, 7)
    assert place(folder, "teacher-state.pt") == (1, 0, 1) and place(folder, "state.pt") == (0, 4, 0)
    kill(folder, settings, 6)
    assert place(folder, "state.pt") == (1, 2, 1) and len(metrics(folder)) == 2
    before = (folder / "last.safetensors").read_bytes()
    seen = Observing(folder)
    train(settings, folder, resume=True, reporter=seen)
    assert seen.weights["student"] == before
    assert seen.totals["teacher"] == 0 and seen.totals["student"] == seen.done["student"] == 439 - 2 * 64
    train(settings, tmp_path / "whole")
    assert_same_run(tmp_path / "whole", folder)


QUICKEST = ("method=pgd-at", *SHORT, "select.set=none")


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with states after 2 and 4 steps of its second epoch."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltat.training.fitting.Timer", EverySteps)
        kill(folder, tiny_config(*QUICKEST), 12)
    assert place(folder, "state.pt") == (1, 4, 1) and place(folder, "state-before.pt") == (1, 2, 1)
    return folder


def test_a_damaged_state_within_an_epoch_costs_the_steps_since_the_one_before(killed: Path, tmp_path: Path):
    folder, lines = tmp_path / "run", io.StringIO()
    shutil.copytree(killed, folder)
    (folder / "state.pt").write_bytes(b"damaged")
    train(tiny_config(*QUICKEST), folder, resume=True, reporter=Reporter(Console(file=lines)), profile=True)
    assert (folder / "trace-student.json").exists()
    assert "continuing from the state of epoch 1 and 2 steps" in lines.getvalue()
    train(tiny_config(*QUICKEST), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", folder)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"running": {"steps": 8}}, "it is of step 8 of epoch 2"),
        ({"running": {"steps": -1}}, "it is of step -1 of an epoch"),
        ({"running": {"steps": 2.5}}, "it is of step 2.5 of an epoch"),
        ({"running": [2]}, "not a training state"),
        ({"running": {"seen": torch.ones(3)}}, "not of this run"),
        ({"running": {"logs": {"loss": "none"}}}, "not of this run"),
        ({"epoch": 0, "rows": [], "best": {"score": 1, "epoch": 1}}, "its best epoch is not one of its epochs"),
        ({"epoch": 0, "rows": [], "best": NOTHING_YET, "stage": "teacher"}, "it is of epoch 0 of stage 'teacher'"),
        ({"epoch": 0, "rows": [], "best": NOTHING_YET, "running": {"steps": 0}}, "its rows are not those of 0 epochs"),
        ({"epoch": 2, "rows": [{"stage": "student", "epoch": 2}]}, "it is of step 4 of epoch 3"),
    ],
)
def test_a_state_at_a_step_that_cannot_be_is_refused(changed: dict[str, Any], why: str, killed: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    state = saved_state(folder)
    for name, value in changed.items():
        state[name] = {**state[name], **value} if name == "running" and isinstance(value, dict) else value
    write_state(folder / "state.pt", state)
    (folder / "state-before.pt").unlink()
    before = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    with pytest.raises(LtatError, match=why):
        train(tiny_config(*QUICKEST), folder, resume=True)
    kept = ("state.pt", "last.safetensors", "last.json", "metrics.jsonl")
    assert all((folder / name).read_bytes() == before[name] for name in kept)


def test_the_seconds_of_an_epoch_include_those_before_the_interruption(killed: Path, tmp_path: Path):
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    state = saved_state(folder)
    state["running"]["seconds"] = 1e6
    write_state(folder / "state.pt", state)
    train(tiny_config(*QUICKEST), folder, resume=True)
    row = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-1]
    assert row["epoch"] == 2 and 1e6 < row["seconds"] < 1e6 + 1e5
    assert row["images_per_s"] == pytest.approx(464 / row["seconds"])


def test_the_minutes_may_change_on_resuming_and_zero_writes_no_state_within_an_epoch(
    killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, asked = tmp_path / "run", []
    shutil.copytree(killed, folder)
    monkeypatch.setattr("ltat.training.fitting.Timer", lambda minutes: asked.append(minutes) or Timer(minutes))
    writes: list[int] = []
    write = RunFolder.save_state
    monkeypatch.setattr(
        RunFolder, "save_state", lambda self, name, state: writes.append(state["epoch"]) or write(self, name, state)
    )
    train(tiny_config(*QUICKEST, "train.checkpoint_minutes=0"), folder, resume=True)
    assert asked == [0] and writes == [2]


def test_the_timer_counts_from_its_last_start_and_zero_minutes_are_never_over():
    now = [100.0]
    timer, never = Timer(2, lambda: now[0]), Timer(0, lambda: now[0])
    over = []
    for now[0] in (100.0, 219.0, 220.0, 500.0):
        over.append(timer.is_over())
    assert over == [False, False, True, True] and not never.is_over()
    timer.start()
    assert not timer.is_over()
    now[0] = 620.0
    assert timer.is_over() and not never.is_over()


def test_a_diverged_training_does_not_replace_its_last_good_state(tmp_path: Path):
    trainer = Trainer(stage_of("method=pgd-at", *QUICK))
    train_until(trainer, 2)
    writer = StateWriter(trainer, RunFolder(tmp_path), "state.pt", [], NOTHING_YET, EverySteps(1))
    writer.write()
    with torch.no_grad():
        next(trainer.stage.model.parameters()).fill_(torch.nan)
    writer.write_if_due()
    with pytest.raises(LtatError, match="no longer finite"):
        writer.write_if_due()
    assert read_state(tmp_path / "state.pt")["running"]["steps"] == 2
    assert not (tmp_path / "state-before.pt").exists()


class Halved(CountingMethod):
    """Saves what it counted in complete epochs, as was enough when states were written after epochs alone."""

    def __init__(self, config, class_counts, teacher=None):
        super().__init__(config, class_counts, teacher)
        self.complete = dict(self.seen)
        self.last_logits = None

    def begin_epoch(self, epoch):
        self.seen = dict(self.complete)
        super().begin_epoch(epoch)

    def end_epoch(self, epoch):
        super().end_epoch(epoch)
        self.complete = dict(self.seen)

    def state_dict(self):
        return dict(self.complete)

    def load_state_dict(self, state):
        self.complete = dict(state)


class Broken(CountingMethod):
    def load_state_dict(self, state):
        self.seen = state["counts"]


OWN = ("method=counting", *SHORT, "select.set=none")


@pytest.mark.usefixtures("state_every_two_steps")
@pytest.mark.parametrize(("kind", "state"), [(CountingMethod, (0, 4, 0)), (Halved, None)])
def test_a_users_method_goes_on_within_an_epoch_or_its_run_says_that_it_cannot(
    kind: type[Method], state: tuple[int, int, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(METHODS, "counting", kind)
    folder, lines = tmp_path / "parts", io.StringIO()
    kill(folder, tiny_config(*OWN), 5)
    assert (place(folder, "state.pt") if (folder / "state.pt").exists() else None) == state
    train(tiny_config(*OWN), folder, resume=True, reporter=Reporter(Console(file=lines)))
    said = "no state is written within an epoch, because the state_dict() of Halved lacks its attribute 'seen'"
    assert (said in lines.getvalue()) == (state is None)
    train(tiny_config(*OWN), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", folder)


def test_a_method_that_cannot_load_its_state_is_told_before_the_folder_is_made(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(METHODS, "counting", Broken)
    with pytest.raises(LtatError, match=r"Broken cannot go on from its own state_dict.* \(KeyError: 'counts'\)"):
        train(tiny_config(*OWN), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_attribute_with_a_gradient_or_without_a_value_is_compared_and_left_as_it_was():
    method = stage_of("method=reat", *QUICK).method
    before = plain_attributes(method)
    assert "counting" in before and "config" not in before
    method.begin_epoch(1)
    method.counting += 3
    assert lost_within_epoch(method, method.state_dict(), before, 1) is None
    method.last = [torch.ones(2, requires_grad=True) * 2, None, float("nan")]
    assert lost_within_epoch(method, method.state_dict(), before, 1) == "last"
    assert method.last[0].tolist() == [2, 2] and method.counting.eq(3).all()
