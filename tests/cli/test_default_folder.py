"""The default run folder: its name holds what sets runs apart."""

from pathlib import Path

import pytest

from ltat.cli.train import default_folder
from ltat.config import load_config
from ltat.methods import find_method


def name(*assignments: str, recipe: str | None = None) -> str:
    asked = load_config(lambda method: find_method(method).Config, recipe=recipe, assignments=assignments)
    return str(default_folder(asked))


def test_the_methods_defaults_need_no_more_words():
    assert name("data.name=cifar10") == name("data.name=cifar10", "data.dir=data", "train.device=cpu", "eval.tau=0")
    assert name("data.name=cifar10") == "runs/cifar10-ir50-resnet18-self-distill-s0"
    assert name("schedule.milestones=[0.75, 0.9]", "method=natural") == "runs/cifar10-ir50-resnet18-natural-s0"


@pytest.mark.parametrize(
    ("assignments", "end"),
    [
        (["train.precision=bf16"], "-s0-precision=bf16"),
        (["train.epochs=40", "seed.train=3"], "-s3-epochs=40"),
        (["attack.steps=7", "train.epochs=40"], "-s0-attack.steps=7-epochs=40"),
        (["eval.tau=1"], "-s0-eval.tau=1.0"),
    ],
)
def test_a_few_other_settings_stand_in_the_name(assignments: list[str], end: str):
    assert name(*assignments).endswith(end)


def test_runs_that_differ_have_folders_of_their_own():
    runs = [
        [],
        ["train.epochs=40"],
        ["optim.lr=0.01"],
        ["db.gamma=1"],
        ["awp.gamma=1"],
        ["schedule.milestones=[0.5]"],
        ["schedule.milestones=[0.6]"],
        ["model.weights=a/last"],
        ["model.weights=b/last"],
        ["seed.train=1"],
        ["data.name=imagefolder", "data.dir=cats"],
        ["data.name=imagefolder", "data.dir=dogs"],
    ]
    assert len({name(*assignments) for assignments in runs}) == len(runs)
    assert name(recipe="demo/digits-at-bsl") != name("data.name=digits", "model.name=small", "method=at-bsl")


def test_a_long_list_of_settings_is_a_short_checksum_and_always_the_same():
    long = name(recipe="demo/digits-at-bsl")
    assert long == name(recipe="demo/digits-at-bsl") and len(Path(long).name) < 60
    assert len(name("attack.start=../x").split("/")) == 2


def test_methods_of_one_name_from_two_files_have_folders_of_their_own(tmp_path: Path):
    source = """
from ltat.methods.pgd_at import PgdAt, PgdAtConfig

class Settings(PgdAtConfig):
    method: str

class Mine(PgdAt):
    Config = Settings
"""
    for file in ("one.py", "two.py"):
        (tmp_path / file).write_text(source)
    assert name(f"method={tmp_path / 'one.py'}:Mine") != name(f"method={tmp_path / 'two.py'}:Mine")
