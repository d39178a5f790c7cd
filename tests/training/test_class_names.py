"""A checkpoint that meets a data set of other classes is refused before anything runs, or mapped by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from ltat import evaluate
from ltat.cli.main import main
from ltat.config import Asked, RunConfig
from ltat.data import load_dataset
from ltat.errors import LtatError
from ltat.models import build_model, load_model, save_model
from ltat.models.small import SmallNet
from ltat.training import prepare, train
from ltat.training.run import given_networks
from tests.training.tiny import tiny_config

BRIGHTNESS = {"ant": 10, "bird": 70, "cat": 130, "dog": 190}  # what tells the classes apart


def npz_folder(root: Path, names: list[str]) -> Path:
    """Images of one brightness a class, so that a class keeps its look whatever its number."""
    root.mkdir()
    noise = np.random.default_rng(0)
    for part, n in (("train", 8), ("test", 4)):
        labels = np.arange(n * len(names)) % len(names)
        look = np.array([BRIGHTNESS[name] for name in names])[labels]
        images = (look[:, None, None, None] + noise.integers(0, 40, (len(labels), 8, 8, 1))).astype(np.uint8)
        np.savez(root / f"{part}.npz", images=images, labels=labels, class_names=names)
    return root


def brightness_model(folder: Path, names: list[str], **facts: object) -> Path:
    """A network that answers by brightness: z_c = 2 b m_c - m_c^2, largest where m_c is nearest to b."""
    model = build_model("small", num_classes=len(names), in_channels=1).eval()
    means = torch.tensor([(BRIGHTNESS[name] + 20) / 255 for name in names])
    with torch.no_grad():
        for layer in (model.conv1, model.conv2, model.conv3):
            layer.weight.zero_()
            layer.weight[0, 0, 1, 1] = 1
        for norm in (model.bn1, model.bn2, model.bn3):
            norm.running_var.fill_(1 - norm.eps)
        model.linear.weight.zero_()
        model.linear.weight[:, :4] = 2 * means[:, None] / 4
        model.linear.bias.copy_(-(means**2))
    save_model(model, folder / "best", extra={"dataset": "npz", **facts}, class_names=names)
    return folder / "best"


def ltat(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def evaluated(model: Path, data: Path, *options: object) -> Result:
    shown = ("--attacks", "clean,pgd2", "--device", "cpu", "--json", data / "report.json")
    return ltat("eval", model, "--dataset", "npz", "--data-dir", data, *shown, *options)


@pytest.mark.parametrize("names", [["ant", "bird", "cat"], ["cat", "bird", "dog"]])
def test_eval_refuses_other_classes_and_another_order(names: list[str], tmp_path: Path, monkeypatch):
    monkeypatch.setattr(SmallNet, "trunk", lambda *_: pytest.fail("the evaluation ran"))
    model, data = brightness_model(tmp_path, ["bird", "cat", "dog"]), npz_folder(tmp_path / "data", names)
    done = evaluated(model, data)
    assert done.exit_code == 2, done.output
    assert "'bird', 'cat', 'dog'" in done.output and ", ".join(map(repr, names)) in done.output
    for given in (load_dataset("npz", data), load_dataset("npz", data).test):
        with pytest.raises(LtatError, match="order_classes"):
            evaluate(load_model(model), given, attacks="clean")


def test_eval_maps_classes_by_name_with_their_training_counts(tmp_path: Path):
    names = ["cat", "bird", "dog"]
    model = brightness_model(tmp_path, ["bird", "cat", "dog"], train_counts=[200, 50, 5])
    data = npz_folder(tmp_path / "data", names)
    done = evaluated(model, data, "--classes-by-name", "--eps", "0.01")
    assert done.exit_code == 0, done.output
    report = json.loads((data / "report.json").read_text())
    assert report["clean"]["overall"] == report["pgd2"]["overall"] == 100
    assert report["clean"]["per_class"] == [100, 100, 100] and not report["flags"]
    assert report["clean"]["n"] | {"many": 4, "medium": 4, "few": 4} == report["clean"]["n"]
    few = brightness_model(tmp_path, ["dog", "cat", "bird"], train_counts=[5, 150, 200])
    evaluated(few, data, "--classes-by-name", "--adjust", "1")
    assert json.loads((data / "report.json").read_text())["adjustment"]["train_counts"] == [150, 200, 5]


def test_eval_by_name_takes_part_of_the_classes_and_says_so_but_invents_none(tmp_path: Path):
    data = npz_folder(tmp_path / "data", ["cat", "bird"])
    done = evaluated(brightness_model(tmp_path, ["bird", "cat", "dog"]), data, "--classes-by-name", "--eps", "0.01")
    assert done.exit_code == 0, done.output
    report = json.loads((data / "report.json").read_text())
    assert report["clean"]["overall"] == 100
    assert report["flags"] == ["classes: only 2 of the model's 3 can be chosen"]
    done = evaluated(brightness_model(tmp_path, ["dog", "cat"]), data, "--classes-by-name")
    assert done.exit_code == 2 and "no class 'bird'" in done.output


def settings(data: Path, *assignments: str) -> Asked[RunConfig]:
    short = ("train.epochs=1", "train.batch_size=8", "select.set=none", "eval.n_examples=6", 'eval.attacks=["clean"]')
    return tiny_config("data.name=npz", f"data.dir={data}", "data.imbalance_ratio=natural", *short, *assignments)


def test_a_teacher_of_other_classes_is_refused_or_mapped(tmp_path: Path):
    data = npz_folder(tmp_path / "data", ["cat", "bird", "dog"])
    path = brightness_model(tmp_path, ["bird", "cat", "dog"])
    taught = ("method=rslad", f"teacher.path={path}")
    with pytest.raises(LtatError, match="the teacher has the classes 'bird', 'cat', 'dog' and the data 'cat'"):
        train(settings(data, *taught), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(LtatError, match=r"teacher\.classes_by_name=true"):
        prepare(settings(data, "method=rslad"), teacher=load_model(path))
    test = load_dataset("npz", data).test
    mapped = prepare(settings(data, *taught, "teacher.classes_by_name=true")).student.method.teacher
    assert evaluate(mapped, test, attacks="clean").summary("clean")["overall"] == 100
    four = load_model(brightness_model(tmp_path, ["bird", "ant", "cat", "dog"]))
    mapped = prepare(settings(data, "method=rslad", "teacher.classes_by_name=true"), teacher=four)
    assert evaluate(mapped.student.method.teacher, test, attacks="clean").summary("clean")["overall"] == 100
    assert four.num_classes == 4


def test_weights_of_other_classes_are_refused_or_mapped(tmp_path: Path):
    data = npz_folder(tmp_path / "data", ["cat", "bird", "dog"])
    start = ("method=pgd-at", f"model.weights={brightness_model(tmp_path, ['bird', 'cat', 'dog'])}")
    with pytest.raises(LtatError, match=r"model\.classes_by_name=true"):
        train(settings(data, *start), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    model = prepare(settings(data, *start, "model.classes_by_name=true")).student.model.eval()
    assert evaluate(model, load_dataset("npz", data).test, attacks="clean").summary("clean")["overall"] == 100


def test_a_run_is_not_resumed_over_a_folder_of_other_classes(tmp_path: Path):
    data = npz_folder(tmp_path / "data", ["bird", "cat", "dog"])
    train(settings(data, "method=pgd-at"), tmp_path / "run")
    data.rename(tmp_path / "before")
    npz_folder(tmp_path / "data", ["ant", "bird", "cat"])
    with pytest.raises(LtatError, match=r"other data .*classes"):
        train(settings(data, "method=pgd-at"), tmp_path / "run", resume=True)


def test_the_normalisation_of_a_teacher_handed_in_is_part_of_its_fingerprint(tmp_path: Path):
    plain, one, other = (
        build_model("small", num_classes=3, in_channels=1, normalize=normalize)
        for normalize in (None, ((0.4,), (0.2,)), ((0.5,), (0.2,)))
    )
    one.load_state_dict(plain.state_dict())
    other.load_state_dict(plain.state_dict())
    config = settings(tmp_path, "method=rslad").config
    given = [given_networks(config, teacher) for teacher in (plain, one, other)]
    assert len({record["teacher"] for record in given}) == 1  # as in run folders of former versions
    assert len({record["teacher_buffers"] for record in given}) == 3
