"""Numbers in another unit than is meant: they are refused with the likely intention, before anything is written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from ltat.cli.main import main
from ltat.config import AttackSection, AwpSection, RunConfig, SeedSection, load_config
from ltat.errors import LtatError
from ltat.methods import Method, find_method
from ltat.models import build_model, save_model


def load(*assignments: str, **given: Any) -> Any:
    return load_config(lambda name: find_method(name).Config, assignments=assignments, **given).config


@pytest.mark.parametrize(
    ("assignment", "advice"),
    [
        ("attack.eps=8", "attack.eps=8 is wider than the box [0, 1] of the pixels; give 8/255?"),
        ("attack.step_size=2", "give 2/255?"),
        ("attack.eps=300", "give at most 1"),
        ("attack.steps=10000000000000000000000", "attack.steps"),
        ("train.epochs=1e18", "train.epochs=1e+18"),
        ("teacher.epochs=1000000", "teacher.epochs=1000000"),
        ("aug.ra_ops=1e18", "aug.ra_ops"),
        ("awp.gamma=5", "awp.gamma=5"),
        ("optim.wd=5", "optim.wd=5"),
        ("average.decay=99.9", "average.decay=99.9"),
        ("radius.share=95", "radius.share=95"),
        ("data.imbalance_ratio=0.02", "give 1/0.02 = 50?"),
        ("data.imbalance_ratio=0", "1 means balanced"),
        ("data.image_size=100000", "data.image_size=100000"),
        ("select.holdout=5", "select.holdout=5"),
    ],
)
def test_a_number_that_looks_like_another_unit_is_reported(assignment: str, advice: str):
    with pytest.raises(LtatError) as caught:
        load(assignment)
    assert advice in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "assignment", ["attack.eps=1", "attack.eps=0", "attack.step_size=0.3", "schedule.milestones=[0.75, 90]"]
)
def test_plausible_numbers_pass(assignment: str):
    load(assignment)


def test_another_norm_demands_its_radius_and_step():
    for given in (["attack.norm=l2"], ["attack.norm=l2", "attack.eps=0.5"], ["attack.norm=l2", "attack.step_size=0.1"]):
        with pytest.raises(LtatError, match=r"attack\.norm=l2 needs .*attack\.(eps|step)"):
            load(*given)
    attack = load("attack.eps=128/255", "attack.norm=l2", "attack.step_size=15/255").attack
    assert (attack.norm, attack.eps, attack.step_size) == ("l2", 128 / 255, 15 / 255)
    assert (
        load("attack.norm=l2", "attack.eps=8", "attack.step_size=2").attack.eps == 8
    )  # of what images is not known here
    natural = load("attack.norm=l2", "attack.eps=1", settings={"method": "natural"})
    assert (natural.attack.steps, natural.attack.eps) == (0, 1)  # where no step is taken, none is asked for
    assert load("attack.norm=linf").attack.eps == 8 / 255


def test_the_radius_of_a_recipe_goes_with_its_norm():
    """A recipe's eps = 8/255 in linf was kept as 8/255 in l2."""
    recipe = {"attack": {"eps": "8/255", "step_size": "2/255", "steps": 7}}
    with pytest.raises(LtatError, match=r"attack\.eps and attack\.step"):
        load("attack.norm=l2", recipe=recipe)
    attack = load("attack.norm=l2", "attack.eps=0.5", "attack.step_size=0.1", recipe=recipe).attack
    assert (attack.eps, attack.step_size, attack.steps) == (0.5, 0.1, 7)
    assert load("attack.norm=linf", recipe=recipe).attack.eps == 8 / 255
    euclidean = {"attack": {"norm": "l2", "eps": 0.5, "step_size": 0.1}}
    assert load("attack.steps=3", recipe=euclidean).attack.eps == 0.5
    assert load("attack.norm=linf", recipe=euclidean).attack.eps == 8 / 255


def test_the_radius_of_a_methods_defaults_goes_with_their_norm():
    class Euclidean(RunConfig):
        attack: AttackSection = AttackSection(norm="l2", eps=0.5, step_size=0.1, steps=7)

    class Mine(Method):
        Config = Euclidean

    def mine(*assignments: str) -> AttackSection:
        return load_config(lambda name: Mine.Config, assignments=assignments, settings={"method": "mine"}).config.attack

    assert (mine("attack.steps=3").norm, mine("attack.steps=3").eps) == ("l2", 0.5)
    linf = mine("attack.norm=linf")
    assert (linf.eps, linf.step_size, linf.steps) == (8 / 255, 2 / 255, 7)


@pytest.mark.parametrize("setting", ["attack.eps=8", "attack.norm=l2", "awp.gamma=99", "data.imbalance_ratio=0.02"])
def test_no_folder_is_made_for_a_number_of_another_unit(setting: str, tmp_path: Path):
    done = CliRunner().invoke(main, ["train", "--dataset", "digits", "--out", str(tmp_path / "run"), "--set", setting])
    assert done.exit_code == 2 and done.output.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("threat", "arguments", "advice"),
    [
        ({"norm": "linf", "eps": 8 / 255}, ["--norm", "l2"], "add --eps"),
        ({}, ["--norm", "l2"], "add --eps"),
        ({"norm": "l2", "eps": 0.5}, ["--norm", "linf"], "add --eps"),
        ({"norm": "l2"}, [], "threat_model"),
        ({}, ["--eps", "8"], "give 8/255?"),
        ({"norm": "linf", "eps": 8}, [], "8/255"),
        ({}, ["--imbalance-ratio", "0.02"], "1/0.02 = 50?"),
        ({}, ["--image-size", "100000"], "image_size"),
    ],
)
def test_eval_asks_for_the_radius_of_another_norm(
    threat: dict[str, Any], arguments: list[str], advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ltat.evaluation.evaluate", lambda *_, **__: pytest.fail("the evaluation ran"))
    extra = {"dataset": "digits", "threat_model": threat} if threat else {"dataset": "digits"}
    save_model(build_model("small", num_classes=10, in_channels=1), tmp_path / "m", extra=extra)
    done = CliRunner().invoke(main, ["eval", str(tmp_path / "m"), *arguments])
    assert done.exit_code == 2 and advice in done.output and done.output.count("\n") == 1, done.output


def test_eval_takes_another_norm_with_its_radius(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    threats = []

    def evaluate(*_: Any, threat: Any, **__: Any) -> None:
        threats.append((threat.norm, threat.eps))
        raise LtatError("enough")

    monkeypatch.setattr("ltat.evaluation.evaluate", evaluate)
    extra = {"dataset": "digits", "threat_model": {"norm": "l2", "eps": 0.5}}
    save_model(build_model("small", num_classes=10, in_channels=1), tmp_path / "m", extra=extra)
    for arguments in ([], ["--norm", "l2"], ["--norm", "linf", "--eps", "4/255"], ["--eps", "2"]):
        CliRunner().invoke(main, ["eval", str(tmp_path / "m"), *arguments])
    assert threats == [("l2", 0.5), ("l2", 0.5), ("linf", 4 / 255), ("l2", 2.0)]


def test_numbers_of_numpy_and_paths_become_pythons_own(tmp_path: Path):
    settings = {
        "seed.train": np.int64(3),
        "attack.eps": np.float32(0.5),
        "attack.fold": np.bool_(False),
        "schedule.milestones": np.array([0.5, 0.75]),
        "data.dir": tmp_path,
        "train": {"epochs": np.int32(7)},
        "teacher.path": tmp_path / "t",
    }
    config = load(settings=settings)
    assert (config.seed.train, config.attack.eps, config.attack.fold) == (3, 0.5, False)
    assert (config.schedule.milestones, config.data.dir, config.train.epochs) == ((0.5, 0.75), str(tmp_path), 7)
    assert type(config.seed.train) is int and config.teacher.path == str(tmp_path / "t")
    assert SeedSection(train=np.uint8(4)).train == 4
    assert AwpSection(gamma=np.float64(0.5)).gamma == 0.5
    recipe = tmp_path / "r.toml"
    recipe.write_text('method = "at-bsl"\n')
    assert load(recipe=recipe).method == "at-bsl"
    with pytest.raises(ValidationError):
        SeedSection(train=np.float64(0.5))
