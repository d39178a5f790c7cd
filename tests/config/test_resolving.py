"""The settings of a run: complete, whatever was left out, and decided in one place."""

import tomllib
from pathlib import Path

import pytest
import torch

from ltat.config import Asked, Decided, RunConfig, Section, left_out, load_config, to_toml
from ltat.config.loading import validated
from ltat.config.resolving import for_dataset, resolve, undecided
from ltat.errors import LtatError
from ltat.methods import METHODS, Method, find_method
from ltat.training.run_folder import RunFolder
from tests.training.tiny import tiny_config

ABSENT = {
    *(f"data.{name}" for name in ("dir", "train_list", "test_list", "split_file", "plan_file")),
    *("data.image_size", "data.channels", "model.weights", "teacher.path"),
}
"""Files that are not given, and changes to image files that are not asked for."""
GIVEN = {
    "data.imbalance_ratio": 7.0,
    "aug.pad": 3,
    "aug.flip": False,
    "seed.db": 5,
    "select.metric": "pgd3",
    "teacher.model": "small",
    "kd.alpha": 0.5,
    "kd.reduction": "sum",
    "igdm.alpha": 0.25,
    "dafa.scale": 0.5,
}


def at(section: Section, dotted: str) -> object:
    value: object = section
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def absent(section: Section, prefix: str = "") -> set[str]:
    """The dotted names of the settings that are ``None``."""
    names: set[str] = set()
    for name in type(section).model_fields:
        value = getattr(section, name)
        names |= absent(value, f"{prefix}{name}.") if isinstance(value, Section) else set()
        names |= {f"{prefix}{name}"} if value is None else set()
    return names


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_knows_every_setting_and_reads_back_what_it_saves(method: str, classes: int):
    config = resolve(Asked(METHODS[method].Config()), classes)
    assert not list(undecided(config)) and absent(config) <= ABSENT
    assert validated(type(config), tomllib.loads(to_toml(config))) == config
    assert resolve(Asked(config), 7) == config


@pytest.mark.parametrize("method", METHODS)
def test_a_setting_that_is_given_stays(method: str):
    kind = METHODS[method].Config
    names = list(undecided(kind()))
    assert set(names) <= GIVEN.keys()
    given = {name: GIVEN[name] for name in names}
    config = resolve(load_config(lambda _: kind, settings={"method": method, **given}), 100)
    assert {name: at(config, name) for name in names} == given


def test_before_the_data_are_loaded_their_name_decides():
    asked = load_config(lambda name: find_method(name).Config, assignments=["data.name=digits", "seed.subset=3"])
    known = for_dataset(asked).config
    assert (known.data.imbalance_ratio, known.aug.pad, known.aug.flip, known.seed.db) == (20, 0, False, 3)
    assert set(undecided(known)) == {"teacher.model", "kd.alpha"}
    with pytest.raises(LtatError, match="digitz"):
        for_dataset(
            Asked(asked.config.model_copy(update={"data": asked.config.data.model_copy(update={"name": "digitz"})}))
        )


def test_the_weight_of_another_form_than_igdm_is_1():
    asked = load_config(lambda name: find_method(name).Config, assignments=["kd.form=kl_adv"])
    assert resolve(asked, 100).kd.alpha == 1


class OpenSection(Section):
    width: Decided[int] = left_out()


class OpenConfig(RunConfig):
    method: str = "open"
    own: OpenSection = OpenSection()


class ClosedConfig(OpenConfig):
    def by_method(self, num_classes: int) -> dict[str, object]:
        return {"own.width": 2 * num_classes}


def test_a_setting_that_nothing_decides_is_named():
    with pytest.raises(LtatError, match=r"^nothing decides own\.width of method 'open'[^\n]*$"):
        resolve(Asked(OpenConfig()), 10)
    assert resolve(Asked(ClosedConfig()), 10).own.width == 20
    with pytest.raises(LtatError, match=r"aug\.pad, .*own\.width"):
        Method(OpenConfig(), torch.ones(10))


@pytest.mark.parametrize("text", ['"text"', "1.5"])
def test_a_setting_that_may_be_left_out_is_checked_where_it_is_given(text: str):
    with pytest.raises(LtatError, match=r"own\.width"):
        load_config(lambda _: OpenConfig, assignments=["method=open", f"own.width={text}"])


NEWER = ("workers", "n_examples", "ramp_len", "model")
"""Settings that config.toml held only where they were given."""


def test_a_run_saved_before_every_setting_was_is_resumed(tmp_path: Path):
    kept = {"subset": {"n": 1, "sha256": "aa", "indices": [0]}}
    config = resolve(tiny_config(), 10)
    RunFolder(tmp_path).open(config, 10, kept, resume=False)
    file = tmp_path / "config.toml"
    lines, teacher = [], False
    for line in file.read_text().splitlines():
        teacher = line == "[teacher]" if line.startswith("[") else teacher
        name = line.partition(" = ")[0]
        lines += [] if name in NEWER[:3] or (teacher and name == "model") else [line]
    file.write_text("\n".join(lines))
    assert len(lines) == len(to_toml(config).splitlines()) - 4
    RunFolder(tmp_path).open(config, 10, kept, resume=True)
    file.write_text("\n".join(lines))
    with pytest.raises(LtatError, match=r"other settings \(kd\.ramp_len\)"):
        RunFolder(tmp_path).open(resolve(tiny_config("kd.ramp_len=200"), 10), 10, kept, resume=True)


SOURCES = sorted((Path(__file__).resolve().parents[2] / "ltat").rglob("*.py"))


def test_no_reader_of_settings_fills_them_or_asks_whether_they_exist():
    """Readers did so in three ways, and the values of one setting could differ."""
    forbidden = (
        "hasattr(config",
        "getattr(config, ",
        "config.kd.reduction or",
        ".metric or",
        ".pad or",
        ".n_examples or",
    )
    found = [f"{path.name}: {words}" for path in SOURCES for words in forbidden if words in path.read_text()]
    assert not found
