"""Settings under the names of earlier versions."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from ltat.cli.main import main
from ltat.config import RunConfig, load_config
from ltat.errors import LtatError
from ltat.methods import find_method


def load(*assignments: str, recipe: dict[str, object] | None = None) -> RunConfig:
    return load_config(lambda name: find_method(name).Config, recipe=recipe or {}, assignments=assignments).config


@pytest.mark.parametrize(
    ("method", "old", "new"),
    [
        ("at-bsl", "lr.milestones=0.25,0.5", "schedule.milestones=0.25,0.5"),
        ("at-bsl", "lr.kind=step", "schedule.kind=multistep"),
        ("self-distill", "teacher.lr.factor=0.5", "teacher.schedule.factor=0.5"),
        ("at-bsl", "attack.step=0.01", "attack.step_size=0.01"),
        ("at-bsl", "radius.alpha=0.3", "radius.share=0.3"),
        ("at-bsl", "radius.ramp=0.3", "radius.ramp_share=0.3"),
        ("ard", "kd.alpha=0.3", "kd.share=0.3"),
    ],
)
def test_a_former_name_sets_the_same_and_names_the_new_one(method: str, old: str, new: str):
    with pytest.warns(FutureWarning, match=f"{new.partition('=')[0].rpartition('.')[0]}"):
        former = load(f"method={method}", old)
    assert former == load(f"method={method}", new)


def test_the_weight_of_the_main_method_keeps_its_name(recwarn: pytest.WarningsRecorder):
    assert load("method=self-distill", "kd.alpha=2").model_dump()["kd"]["alpha"] == 2
    assert not recwarn.list


def test_a_former_section_and_todays_are_one():
    recipe = {"method": "at-bsl", "lr": {"factor": 0.5, "kind": "step"}}
    with pytest.warns(FutureWarning, match="schedule"):
        schedule = load("schedule.milestones=[0.5]", recipe=recipe).schedule
    assert (schedule.factor, schedule.kind, schedule.milestones) == (0.5, "multistep", (0.5,))


def test_a_setting_under_both_names_is_refused():
    with pytest.warns(FutureWarning), pytest.raises(LtatError, match="step_size is given twice"):
        load("schedule.factor=0.5", "lr.kind=step", "attack.step=0.1", "attack.step_size=0.2")


def test_a_section_that_says_one_setting_twice_is_refused():
    with pytest.raises(LtatError, match="schedule is given twice"):
        load("method=at-bsl", "lr.warmup=1", "schedule.warmup=2")


def test_a_shared_step_size_under_its_former_name_goes_with_the_norm_too(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'method = "at-bsl"\nattack = { step = 0.01 }\n[recipe."wide"]\nattack = { norm = "l2", eps = 0.5 }\n'
    )
    with pytest.raises(LtatError, match=r"needs attack\.step_size in that norm"):
        load_config(lambda name: find_method(name).Config, recipe=f"{file}:wide")


def test_the_command_line_says_the_new_name_in_one_line():
    done = CliRunner().invoke(main, ["train", "--dataset", "digits", "--set", "lr.factor=0.5", "--show-config"])
    assert done.exit_code == 0, done.output
    assert "warning: lr is now schedule; the next version removes the former name\n" in done.stderr
    assert "[schedule]" in done.stdout and "[lr]" not in done.stdout
