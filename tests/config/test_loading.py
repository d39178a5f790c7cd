"""Settings: where they come from, which win, and what a wrong one says."""

import os
import tomllib
from pathlib import Path

import pytest

from ltat.config import RunConfig, from_toml, list_recipes, load_config, to_toml
from ltat.config.loading import parse_assignment
from ltat.errors import LtatError
from ltat.methods import METHODS, find_method


def config_of(name: str) -> type[RunConfig]:
    return find_method(name).Config


def load(**arguments) -> RunConfig:
    return load_config(config_of, **arguments).config


def test_a_radius_written_as_a_quotient_is_that_number():
    assert load(assignments=["attack.eps=8/255"]).attack.eps == 8 / 255
    assert load(recipe={"attack": {"eps": "0.031"}}).attack.eps == 0.031


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_defaults():
    recipe = {"method": "at-bsl", "train": {"epochs": 7, "batch_size": 9}}
    config = load(recipe=recipe, settings={"train.epochs": 5, "seed.train": None}, assignments=["optim.lr=0.3"])
    assert (config.train.epochs, config.train.batch_size, config.optim.lr, config.seed.train) == (5, 9, 0.3, 0)
    assert load(settings={"train.epochs": 5}, assignments=["train.epochs=4"]).train.epochs == 4


def test_an_assignment_does_not_change_the_recipe_it_was_given():
    recipe = {"train": {"epochs": 7}}
    load(recipe=recipe, assignments=["train.epochs=1"])
    assert recipe == {"train": {"epochs": 7}}


@pytest.mark.parametrize(
    ("assignment", "names"),
    [
        ("attack.esp=0.1", ["attack.esp"]),
        ("attack.eps=-0.1", ["attack.eps", "-0.1"]),
        ("attack.eps=nan", ["attack.eps", "nan"]),
        ("attack.eps=1/0", ["attack.eps", "1/0"]),
        ("train.epochs=0", ["train.epochs", "0"]),
        ("kd.form=feature", ["kd.form", "feature"]),
        ("data.imbalance_ratio=0.5", ["data.imbalance_ratio", "0.5"]),
        ("train.epochs.x=1", ["train.epochs"]),
        ("epochs", ["epochs", "section.key=value"]),
        ("=3", ["=3"]),
        ("method=unheard", ["unheard", "at-bsl"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(assignment: str, names: list[str]):
    with pytest.raises(LtatError) as error:
        load(settings={"train.epochs": 3} if "epochs.x" in assignment else None, assignments=[assignment])
    assert all(name in str(error.value) for name in names)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        (
            "data.imbalance_ratio=many",
            "data.imbalance_ratio='many' is not possible: it must be a finite number or 'natural'",
        ),
        ("db.gamma=-1", "db.gamma=-1 is not possible: it must be greater than 0 or 'ir/2'"),
        ("data=3", "data=3 is not possible: it must be a section"),
        ("schedule.milestones=3", "schedule.milestones=3 is not possible: it must be a list"),
        ("schedule.milestones=[0.5,-1]", "schedule.milestones=-1 is not possible: it must be greater than 0"),
        ("train.epochs=1.5", "train.epochs=1.5 is not possible: it must be a whole number"),
        ("select.from=0", "select.from=0 is not possible: it must be greater"),
    ],
)
def test_a_wrong_setting_is_reported_in_the_readers_words(assignment: str, sentence: str):
    with pytest.raises(LtatError) as error:
        load(assignments=[assignment])
    assert str(error.value).startswith(f"setting {sentence}")


def test_a_list_needs_no_brackets_but_a_word_with_a_comma_stays_a_word():
    assert load(assignments=["eval.attacks=clean,pgd20"]).eval.attacks == ("clean", "pgd20")
    assert load(assignments=["eval.attacks=clean"]).eval.attacks == ("clean",)
    assert load(assignments=["schedule.milestones=0.5, 0.75"]).schedule.milestones == (0.5, 0.75)
    assert load(assignments=["data.dir=a,b"]).data.dir == str(Path("a,b").absolute())
    assert load(assignments=["eval.attacks=clean", 'eval.attacks=["pgd2"]']).eval.attacks == ("pgd2",)
    with pytest.raises(LtatError, match=r"eval\.attack'"):
        load(assignments=["eval.attack=clean,pgd20"])


def test_a_setting_of_another_method_is_refused_not_ignored():
    with pytest.raises(LtatError, match="kd"):
        load(assignments=["method=at-bsl", "kd.alpha=1"])


def test_values_are_read_as_toml_and_words_need_no_quotes():
    assert parse_assignment("schedule.milestones=[0.5, 40]") == ("schedule.milestones", [0.5, 40])
    assert parse_assignment("aug.flip=false") == ("aug.flip", False)
    assert parse_assignment("model.name=wrn34-10") == ("model.name", "wrn34-10")
    assert parse_assignment("data.dir=a=b") == ("data.dir", "a=b")


@pytest.mark.parametrize("method", METHODS)
def test_saved_settings_read_back_as_the_same_settings(method: str):
    config = load(settings={"method": method}, assignments=["attack.eps=8/255", "select.from=3"])
    again = type(config).model_validate(tomllib.loads(to_toml(config)))
    assert again == config


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_of_the_package_is_valid(name: str):
    assert load(recipe=name).method in METHODS


def test_a_broken_settings_file_says_where(tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("a = = 1")
    with pytest.raises(LtatError, match="line 1"):
        from_toml(path)
    with pytest.raises(LtatError, match=r"absent\.toml"):
        load(recipe=str(tmp_path / "absent.toml"))


def test_a_settings_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "marked.toml"
    path.write_bytes(b"\xef\xbb\xbfmethod = 'at-bsl'")
    assert load(recipe=str(path)).method == "at-bsl"


UNREADABLE_VALUES = {
    "a long number": ("9" * 5000, "more than 64 bits"),
    "a long hexadecimal number": ("0x" + "f" * 5000, "more than 64 bits"),
    "many brackets": ("[" * 5000 + "]" * 5000, "nested more than 8 deep"),
    "some brackets": ("[" * 20 + "]" * 20, "nested more than 8 deep"),
}


@pytest.mark.parametrize("kind", UNREADABLE_VALUES)
def test_values_that_python_stumbles_over_are_one_sentence(tmp_path, kind):
    value, reason = UNREADABLE_VALUES[kind]
    path = tmp_path / "hostile.toml"
    path.write_text(f"[train]\nepochs = {value}\n")
    for given in ({"recipe": str(path)}, {"assignments": [f"train.epochs={value}"]}):
        with pytest.raises(LtatError, match=reason) as caught:
            load(**given)
        assert len(str(caught.value)) < 500


def test_tables_nested_without_end_are_refused(tmp_path):
    path = tmp_path / "deep.toml"
    path.write_text("train" + ".epochs" * 5000 + " = 1")
    for given in ({"recipe": str(path)}, {"assignments": [path.read_text()]}):
        with pytest.raises(LtatError, match="nested more than 8 deep") as caught:
            load(**given)
        assert len(str(caught.value)) < 500


def test_a_pipe_or_a_device_is_no_settings_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    (tmp_path / "zero.toml").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(LtatError, match="it is a pipe or a device, no file"):
            load(recipe=str(tmp_path / f"{name}.toml"))


def test_the_published_defaults_of_the_main_method_stay_what_the_documentation_says():
    config = load()
    assert config.method == "self-distill"
    assert (config.optim.lr, config.optim.momentum, config.optim.nesterov, config.optim.wd) == (0.1, 0.9, False, 5e-4)
    assert (config.train.epochs, config.train.batch_size) == (100, 128)
    attack = config.attack
    assert (attack.eps, attack.steps, attack.step_size, attack.start, attack.mode) == (
        8 / 255,
        10,
        2 / 255,
        "gauss",
        "eval",
    )
    kd = config.kd
    assert (kd.form, kd.alpha, kd.ramp, kd.temp, kd.reduction, kd.bn) == ("igdm", None, "linear", 1, "batchmean", "two")
    assert (kd.clamp_minus, kd.mix, kd.on_biased, config.bsl.tau) == (False, "additive", False, 1)
    assert (config.teacher.epochs, config.teacher.batch_size, config.teacher.ckpt) == (30, 32, "last")
    assert (config.db.gamma, config.db.resample, config.db.remainder) == ("ir/2", "once", "no_replace")


def test_a_methods_default_outlives_a_change_of_another_setting_of_its_section():
    """AT-BSL drops the rate three times; changing the factor used to bring back the two drops all methods share."""
    for given in ({"assignments": ["schedule.factor=0.5"]}, {"recipe": {"schedule": {"factor": 0.5}}}):
        schedule = load(settings={"method": "at-bsl"}, **given).schedule
        assert (schedule.milestones, schedule.factor) == ((0.75, 0.9, 1.0), 0.5)
    assert load(assignments=["method=at-bsl", "schedule.milestones=[0.5]"]).schedule.milestones == (0.5,)


def test_a_number_too_long_to_read_is_reported_in_plain_words():
    with pytest.raises(LtatError, match="must be a whole number"):
        load_config(lambda name: RunConfig, settings={"method": "any", "schedule.warmup": 1e308})
