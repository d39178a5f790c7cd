"""A teacher stage trained alone and taken over gives the files and bits of a run that trained it."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ltat.errors import LtatError
from ltat.models import read_card
from ltat.training import prepare, teacher_key, train, train_teacher_alone
from ltat.training.run_folder import TEACHER_FILES
from ltat.training.state_file import write_state
from ltat.training.teacher_run import finished_stage
from tests.training.test_resume import Interrupting, assert_same_run
from tests.training.tiny import saved_state, tiny_config

STUDENTS = {
    "self-distill": ("kd.alpha=0.5",),
    "ard": ("method=ard", "train.epochs=2"),
    "adaad": ("method=adaad", "train.epochs=1", "attack.loss=kl-adv"),
}
SHARED = (
    *("teacher.train=balanced", "teacher.epochs=2"),
    *("attack.mode=eval", "attack.start=gauss", "optim.wd=5e-4"),  # a teacher has those of the student's method
)
AVERAGED = ("teacher.average.kind=ema", "teacher.average.decay=0.9", "teacher.awp.gamma=0.05", "train.epochs=1")
TIMINGS = {"seconds", "images_per_s"}


def rows(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in lines]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    train_teacher_alone(tiny_config("method=ard", *SHARED), folder)
    return folder


def student(name: str):
    return tiny_config(*SHARED, *STUDENTS[name])


def test_students_of_one_teacher_have_one_key():
    keys = {teacher_key(student(name)) for name in STUDENTS}
    assert len(keys) == 1 and None not in keys
    assert teacher_key(tiny_config("method=at-bsl")) is None


@pytest.mark.parametrize(
    "change",
    [
        *("seed.train=1", "seed.subset=1", "teacher.epochs=3", "teacher.base_lr=0.2", "teacher.model=resnet18"),
        *("attack.steps=1", "optim.wd=0", "data.imbalance_ratio=10", "select.holdout=0.1", "teacher.ckpt=best"),
        *('select.set="none"', "train.precision=bf16", "db.gamma=2", "aug.pad=1"),
        *("teacher.average.kind=ema", "teacher.average.decay=0.9", "teacher.awp.gamma=0.01"),
    ],
)
def test_what_changes_the_teacher_changes_its_key(change: str):
    before = teacher_key(tiny_config("method=ard", *SHARED))
    after = teacher_key(tiny_config("method=ard", *SHARED, change))
    assert after is not None and after != before


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_that_takes_it_over_has_the_bits_of_one_that_trained_it(name: str, teacher: Path, tmp_path: Path):
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    train(student(name), whole)
    train(student(name), shared, teacher_run=teacher)
    for file in ("teacher", "best", "last"):
        assert (whole / f"{file}.safetensors").read_bytes() == (shared / f"{file}.safetensors").read_bytes()
        assert (whole / f"{file}.json").read_bytes() == (shared / f"{file}.json").read_bytes()
    assert rows(whole) == rows(shared)
    report = json.loads((shared / "report.json").read_text())
    assert report == json.loads((whole / "report.json").read_text()) and "teacher" in report
    assert (whole / "config.toml").read_bytes() == (shared / "config.toml").read_bytes()
    seconds = [json.loads(line)["seconds"] for line in (shared / "metrics.jsonl").read_text().splitlines()[:2]]
    own = [json.loads(line)["seconds"] for line in (teacher / "metrics.jsonl").read_text().splitlines()]
    assert seconds == own  # so it did not train them again


def test_the_best_teacher_is_handed_on_too(tmp_path: Path):
    settings = ("teacher.ckpt=best", "teacher.epochs=2", "train.epochs=1")
    train_teacher_alone(tiny_config(*settings), tmp_path / "teacher")
    train(tiny_config(*settings), tmp_path / "whole")
    train(tiny_config(*settings), tmp_path / "shared", teacher_run=tmp_path / "teacher")
    for file in ("teacher", "teacher-best", "last"):
        one, other = (load_file(tmp_path / run / f"{file}.safetensors") for run in ("whole", "shared"))
        assert all(one[name].equal(other[name]) for name in one)


def test_a_run_that_has_begun_its_own_teacher_keeps_it(teacher: Path, tmp_path: Path):
    train(student("ard"), tmp_path, teacher_run=teacher)
    before = saved_state(tmp_path, TEACHER_FILES.state)["run"]
    train(student("ard"), tmp_path, resume=True, teacher_run=tmp_path / "nowhere")
    assert saved_state(tmp_path, TEACHER_FILES.state)["run"] == before


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        (("method=ard", *SHARED, "teacher.epochs=3"), "is of epoch 2 of 3; resume it"),
        (("method=ard", *SHARED, "seed.train=1"), r"another than the run's \(seed.train\)"),
        (("method=at-bsl",), "has no teacher stage"),
    ],
)
def test_another_teacher_is_refused_before_the_folder_is_made(settings, fragment, teacher: Path, tmp_path: Path):
    with pytest.raises(LtatError, match=fragment):
        train(tiny_config(*settings), tmp_path / "run", teacher_run=teacher)
    assert not (tmp_path / "run").exists()


def test_a_teacher_on_other_images_is_refused(teacher: Path):
    run = prepare(student("ard"))
    run.data.train.indices[0] += 1
    with pytest.raises(LtatError, match="the images"):
        finished_stage(run, teacher)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose teacher stage has an average and AWP."""
    folder = tmp_path_factory.mktemp("averaged")
    train(tiny_config(*AVERAGED), folder)
    return folder


def test_the_average_of_a_teacher_stage_is_the_teacher_of_the_student(averaged: Path, tmp_path: Path):
    state = saved_state(averaged, TEACHER_FILES.state)
    teacher = load_file(averaged / "teacher.safetensors")
    assert all(value.equal(state["average"]["network"][name]) for name, value in teacher.items())
    assert not teacher["conv1.weight"].equal(state["model"]["conv1.weight"])
    assert read_card(averaged / "teacher").extra["average"]["decay"] == 0.9
    train(tiny_config("train.epochs=1", f"teacher.path={averaged / 'teacher.safetensors'}"), tmp_path)
    assert (tmp_path / "last.safetensors").read_bytes() == (averaged / "last.safetensors").read_bytes()


def test_awp_of_the_teacher_stage_trains_another_teacher(averaged: Path, tmp_path: Path):
    train_teacher_alone(tiny_config(*AVERAGED, "teacher.awp.gamma=0"), tmp_path)
    raw = [saved_state(folder, TEACHER_FILES.state)["model"] for folder in (averaged, tmp_path)]
    assert not raw[0]["conv1.weight"].equal(raw[1]["conv1.weight"])


@pytest.mark.parametrize("steps", [3, 7])
def test_a_teacher_stage_with_an_average_resumes_with_the_same_bits(averaged: Path, steps: int, tmp_path: Path):
    config = tiny_config(*AVERAGED)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, reporter=Interrupting(steps))
    train(config, tmp_path, resume=True)
    assert_same_run(averaged, tmp_path)


def test_a_shared_teacher_stage_with_an_average_hands_on_its_average(averaged: Path, tmp_path: Path):
    train_teacher_alone(tiny_config(*AVERAGED), tmp_path / "teacher")
    train(tiny_config(*AVERAGED), tmp_path / "run", teacher_run=tmp_path / "teacher")
    assert_same_run(averaged, tmp_path / "run")


def test_the_teacher_of_a_version_that_knew_fewer_settings_is_taken_over(teacher: Path):
    path = teacher / TEACHER_FILES.state
    content, state = path.read_bytes(), saved_state(teacher, TEACHER_FILES.state)
    del state["run"]["settings"]["average"], state["run"]["settings"]["loss"]
    try:
        write_state(path, state)
        assert finished_stage(prepare(student("ard")), teacher)["epoch"] == 2
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("setting", "fragment"),
    [
        ("teacher.awp.warmup=2", r"in the teacher stage .* awp\.warmup=2 leaves none"),
        ("teacher.average.start=3", r"in the teacher stage .*average\.start=3 is beyond"),
    ],
)
def test_an_average_or_awp_that_the_teacher_stage_cannot_have_is_refused(setting: str, fragment: str, tmp_path: Path):
    with pytest.raises(LtatError, match=fragment):
        train(tiny_config(*AVERAGED, setting), tmp_path / "run")
    assert not (tmp_path / "run").exists()
