"""Two options that name one thing: the later one counts, or one sentence refuses them; none is passed over."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ltat.cli import compare, demo
from ltat.cli.main import main
from ltat.config import RunConfig
from ltat.errors import LtatError
from ltat.models import build_model, save_model
from ltat.sweeps import RunPlan


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    done = run(*arguments)
    assert done.exit_code == 2 and done.output.count("\n") == 1, done.output
    return done.output


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[RunConfig]]:
    """The settings of the runs that a comparison would make; nothing is looked at or trained."""
    configs: dict[str, list[RunConfig]] = {}

    def keep(plans: list[RunPlan], launcher: object, out: Path) -> dict[str, object]:
        configs.clear()
        for plan in plans:
            configs.setdefault(plan.row, []).append(plan.asked().config)
        return {}

    monkeypatch.setattr(compare, "carry_out", keep)
    return configs


def shown(*arguments: object) -> str:
    done = run("train", *arguments, "--show-config")
    assert done.exit_code == 0, done.output
    return done.output


def test_a_comparison_obeys_the_data_set_that_is_named_beside_a_recipe(compared: dict[str, list[RunConfig]]):
    """`--recipe unified/digits --dataset npz` printed figures of digits."""
    done = run("compare", "--recipe", "unified/digits", "--dataset", "npz", "--data-dir", "mine", "--methods", "ard")
    assert done.exit_code == 0, done.output
    assert {(own.data.name, own.data.dir) for own in compared["ard"]} == {("npz", str(Path("mine").absolute()))}
    assert {own.model.name for own in compared["ard"]} == {"small"}  # the protocol is the recipe's


@pytest.mark.parametrize(
    "setting", ["seed.train=5", "seed={train=5}", "method=ard", "method=at-bsl", "seed={subset=1, train=0}"]
)
def test_a_comparison_decides_method_and_seed_itself(setting: str, compared: dict[str, list[RunConfig]]):
    """With seed.train set, every seed of the table would be the same run."""
    assert "leave it out" in refused("compare", "--methods", "at-bsl", "--set", setting) and not compared


def test_a_teacher_of_the_recipe_goes_before_a_self_teacher_in_a_comparison(
    compared: dict[str, list[RunConfig]], tmp_path: Path
):
    recipe = tmp_path / "r.toml"
    recipe.write_text('method = "ard"\n[data]\nname = "digits"\n[teacher]\npath = "t"\n')
    assert run("compare", "--recipe", recipe, "--methods", "ard", "--seeds", 2).exit_code == 0
    assert [(own.teacher.path, own.teacher.train, own.seed.train) for own in compared["ard"]] == [
        (str(Path("t").absolute()), "none", 0),
        (str(Path("t").absolute()), "none", 1),
    ]
    assert run("compare", "--methods", "ard", "--seeds", 1).exit_code == 0
    assert compared["ard"][0].teacher.train == "balanced"


def test_two_classes_of_one_name_are_reported_before_the_first_run(tmp_path: Path):
    for file in ("a.py", "b.py"):
        (tmp_path / file).write_text("from ltat.methods import AtBsl\nclass Mine(AtBsl): pass\n")
    methods = f"{tmp_path / 'a.py'}:Mine,{tmp_path / 'b.py'}:Mine"
    assert "one name" in refused("compare", "--methods", methods, "--out", tmp_path / "out")


def test_of_a_setting_given_twice_the_last_counts():
    base = ("--dataset", "digits", "--method", "at-bsl")
    assert "epochs = 4" in shown(*base, "--set", "train.epochs=3", "--set", "train.epochs=4")
    assert "epochs = 4" in shown(*base, "--epochs", 3, "--epochs", 4)
    assert "epochs = 4" in shown(*base, "--epochs", 3, "--set", "train={epochs=4}")
    assert 'name = "npz"' in shown(*base, "--set", "data.name=npz")


def test_a_table_changes_its_settings_and_no_others():
    """`--set 'optim={lr=0.3}'` dropped what the recipe says of optim."""
    text = shown("--recipe", "trades/faithful", "--set", "optim={lr=0.3}")
    assert (
        "lr = 0.3" in text
        and text.partition("[optim]")[2].split("[lr]")[0]
        == shown("--recipe", "trades/faithful", "--set", "optim.lr=0.3").partition("[optim]")[2].split("[lr]")[0]
    )
    text = shown("--dataset", "digits", "--set", "train.batch_size=7", "--set", "train={epochs=3}")
    assert "batch_size = 7" in text and "epochs = 3" in text


def test_a_setting_has_one_name():
    assert "has no setting 'select.from_epoch'" in refused("train", "--set", "select.from_epoch=3", "--show-config")
    assert "from = 3" in shown("--dataset", "digits", "--set", "select.from=3")


@pytest.mark.parametrize("teacher", [["--teacher", "t"], ["--set", "teacher.path=t"]])
def test_a_teacher_is_named_or_trained_not_both(teacher: list[str]):
    base = ["--method", "self-distill", "--dataset", "digits", *teacher, "--set"]
    assert "leave one out" in refused("train", *base, "teacher.train=balanced", "--show-config")
    assert f'path = "{Path("t").absolute()}"' in shown(*base, "teacher.train=none")


def test_eval_replaces_no_checkpoint_by_its_report(tmp_path: Path):
    save_model(build_model("small", num_classes=10, in_channels=1), tmp_path / "best", extra={"dataset": "digits"})
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for named in ("best", "best.safetensors"):
        for file in ("best.json", "best.safetensors"):
            done = refused("eval", tmp_path / named, "--json", tmp_path / file, "--attacks", "clean")
            assert "checkpoint itself" in done
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_two_outputs_have_two_names(tmp_path: Path):
    file = tmp_path / "both"
    assert "two places" in refused("data", "info", "digits", "--png", file, "--json", file)
    assert not file.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "info", "npz", "--dataset", "digits"],
        ["data", "info", "digits", "--data-dir", "mine"],
        ["data", "info", "digits", "--image-size", 8],
        ["data", "info", "digits", "--train-list", "list.txt"],
        ["data", "info", "npz", "--data-dir", ".", "--download"],
        ["train", "--dataset", "digits", "--data-dir", "mine"],
        ["train", "--dataset", "digits", "--train-list", "list.txt"],
        ["compare", "--data-dir", "mine", "--methods", "at-bsl"],
    ],
)
def test_what_a_data_set_does_not_take_is_refused(arguments: list[Any], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(*arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "setting",
    ["method=at-bsl", "data.name=npz", "eval.attacks=clean", "eval.tau=1", "eval.n_examples=9", "seed.train=1"],
)
def test_the_demo_refuses_what_it_decides_itself(setting: str):
    with pytest.raises(LtatError, match="leave it out"):
        demo.checked_settings("demo/digits-at-bsl", 0, None, (setting,))


def test_the_demo_hands_its_number_of_examples_to_both_runs():
    config = demo.checked_settings("demo/digits-at-bsl", 0, 20, ("eval.batch_size=7",)).config
    assert (config.eval.n_examples, config.eval.batch_size) == (20, 7)


@pytest.mark.parametrize("arguments", [["train", "--list-recipes"], ["bench", "--list"]])
def test_a_list_is_printed_whatever_else_is_said(arguments: list[str]):
    alone = run(*arguments)
    assert alone.exit_code == 0 and alone.output.count("\n") > 5
    assert run(*arguments, "--device", "cpu").output == alone.output
