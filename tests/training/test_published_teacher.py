"""A teacher from another project's file: read as another network, without its normalisation, or as another run's."""

from functools import partial
from pathlib import Path

import pytest
import torch

from ltat.errors import LtatError
from ltat.methods.teachers import TeacherSection
from ltat.models import MODELS, build_model, save_model
from ltat.models.silu_wideresnet import PUBLISHED_NORMALIZATIONS, SiluWideResNet
from ltat.training import train
from ltat.training.teacher import read_published
from tests.training.tiny import tiny_config

ARD = ("method=ard", "train.epochs=1", "select.set=none")


@pytest.fixture
def small_silu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A miniature under the name of the network, and a file of its weights without mean and deviation."""
    monkeypatch.setitem(MODELS, "wrn28-10-silu", partial(SiluWideResNet, depth=10, widen=1))
    torch.save(build_model("wrn28-10-silu", num_classes=4).state_dict(), tmp_path / "w.pt")
    return tmp_path / "w.pt"


def section(path: Path, **settings: str) -> TeacherSection:
    return TeacherSection(path=str(path), model="wrn28-10-silu", **settings)


def test_it_teaches_as_the_same_weights_in_a_file_of_ours(run_tiny, tmp_path: Path):
    torch.manual_seed(1)
    teacher = build_model("small", num_classes=10, in_channels=1)
    save_model(teacher, tmp_path / "ours", extra={})
    torch.save({"net": {f"module.{key}": value for key, value in teacher.state_dict().items()}}, tmp_path / "theirs.pt")
    one = run_tiny("one", *ARD, f"teacher.path={tmp_path / 'ours.safetensors'}")
    two = run_tiny("two", *ARD, f"teacher.path={tmp_path / 'theirs.pt'}", "teacher.model=small")
    assert (one / "last.safetensors").read_bytes() == (two / "last.safetensors").read_bytes()


def test_another_file_under_the_same_name_does_not_resume_the_run(run_tiny, tmp_path: Path):
    path = tmp_path / "theirs.pt"
    torch.save(build_model("small", num_classes=10, in_channels=1).state_dict(), path)
    run_tiny("run", *ARD, f"teacher.path={path}")
    torch.save(build_model("small", num_classes=10, in_channels=1).state_dict(), path)
    with pytest.raises(LtatError, match="teacher"):
        run_tiny("run", *ARD, f"teacher.path={path}", resume=True)


def test_another_network_is_named_before_anything_is_written(tmp_path: Path):
    torch.save(build_model("small", num_classes=10, in_channels=1).state_dict(), tmp_path / "t.pt")
    with pytest.raises(LtatError, match=r"read as teacher\.model=resnet8-s2: .*another architecture"):
        train(tiny_config(*ARD, f"teacher.path={tmp_path / 't.pt'}", "teacher.model=resnet8-s2"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_published_constants_are_asked_for_where_the_file_has_none(small_silu: Path):
    with pytest.raises(LtatError, match=r"teacher\.normalize=cifar10 or cifar100"):
        read_published(section(small_silu), 4, 3)
    loaded = read_published(section(small_silu, normalize="cifar100"), 4, 3)
    assert loaded.normalization == PUBLISHED_NORMALIZATIONS["cifar100"] and not loaded.training


def test_reading_costs_the_run_no_random_number(small_silu: Path):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    read_published(section(small_silu, normalize="cifar10"), 4, 3)
    assert torch.equal(torch.rand(4), expected)


def test_constants_for_a_teacher_that_has_its_own_are_refused(tmp_path: Path):
    save_model(build_model("small", num_classes=10, in_channels=1), tmp_path / "ours", extra={})
    given = (*ARD, f"teacher.path={tmp_path / 'ours'}", "teacher.normalize=cifar10")
    with pytest.raises(LtatError, match=r"teacher\.normalize=cifar10 is for a teacher from a \.pt"):
        train(tiny_config(*given), tmp_path / "run")
    assert not (tmp_path / "run").exists()
