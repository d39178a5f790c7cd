"""A run that starts from a saved model starts from exactly that one, or says before training why it cannot."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ltat.errors import LtatError
from ltat.models import build_model, put_head, read_card, save_model
from ltat.training import prepare, train
from tests.training.test_resume import Interrupting, assert_same_run
from tests.training.tiny import tiny_config

STILL = ("method=pgd-at", "train.epochs=1", "optim.lr=0", "optim.wd=0", "attack.steps=0")


def saved(folder: Path, name: str = "small", classes: int = 10, channels: int = 1, head: str = "linear", **more) -> str:
    torch.manual_seed(3)
    model = build_model(name, num_classes=classes, in_channels=channels, **more)
    if head != "linear":
        put_head(model, head)
    save_model(model, folder / "start", extra={})
    return str(folder / "start.safetensors")


def test_a_run_begins_with_the_saved_weights(tmp_path: Path):
    path = saved(tmp_path)
    train(tiny_config(*STILL, f"model.weights={path}"), tmp_path / "run")
    before, after = load_file(path), load_file(tmp_path / "run" / "last.safetensors")
    assert all(before[name].equal(after[name]) for name in before if name.endswith(("weight", "bias")))


def test_only_the_student_starts_from_them(tmp_path: Path):
    plan = prepare(tiny_config(f"model.weights={saved(tmp_path)}"))
    wanted = load_file(tmp_path / "start.safetensors")["conv1.weight"]
    assert plan.student.model.conv1.weight.equal(wanted)
    assert not plan.teacher.model.conv1.weight.equal(wanted)


def test_the_saved_networks_own_normalisation_stays_inside(tmp_path: Path):
    path = saved(tmp_path, normalize=((0.25,), (0.5,)))
    stage = prepare(tiny_config(*STILL, f"model.weights={path}", "model.normalize=train")).student
    assert stage.model.normalize.mean.item() == 0.25


def test_a_path_is_kept_from_the_root_so_that_a_run_resumes_from_anywhere(tmp_path: Path, monkeypatch):
    saved(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert prepare(tiny_config(*STILL, "model.weights=start")).config.model.weights == str(tmp_path / "start")


def test_an_interrupted_run_goes_on_and_refuses_other_weights_under_the_same_name(tmp_path: Path):
    config = tiny_config("method=pgd-at", "train.epochs=2", f"model.weights={saved(tmp_path)}")
    train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", reporter=Interrupting(8))
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    record = json.loads((tmp_path / "parts" / "indices.json").read_text())
    assert record["weights"]["sha256"] == read_card(tmp_path / "start").sha256
    save_model(build_model("small", num_classes=10, in_channels=1), tmp_path / "start", extra={})
    with pytest.raises(LtatError, match="weights in indices"):
        train(config, tmp_path / "parts", resume=True)


@pytest.mark.parametrize(
    ("of", "settings", "says"),
    [
        ({"name": "resnet18"}, [], "architecture is resnet18"),
        ({"classes": 7}, [], "number of classes is 7"),
        ({"channels": 3}, [], "number of channels is 3"),
        ({"head": "cosine"}, [], "last layer is cosine"),
        ({}, ["method=robal"], "last layer is linear"),
        ({"head": "cosine"}, ["method=robal", "robal.scale_out=10"], "constant scale of its last layer"),
        ({"normalize": ((0.25,), (0.5,))}, [], "normalisation is train"),
        ({}, ["model.normalize=train"], "normalisation is none"),
        ({}, ["method=self-distill", "student.init=teacher"], "both set the start"),
    ],
)
def test_weights_of_another_network_are_refused_before_anything_is_written(of, settings, says: str, tmp_path: Path):
    config = tiny_config(*STILL[1:], "method=pgd-at", *settings, f"model.weights={saved(tmp_path, **of)}")
    with pytest.raises(LtatError, match=says):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_there_are_named(tmp_path: Path):
    with pytest.raises(LtatError, match=r"absent\.safetensors"):
        prepare(tiny_config(*STILL, f"model.weights={tmp_path}/absent"))
