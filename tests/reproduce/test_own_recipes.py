"""The recipes of this project cost what their page says, no more than the paper's run, and train."""

import re
from pathlib import Path

import pytest

from ltat.config import Asked, RunConfig, list_recipes, load_config
from ltat.methods import find_method
from ltat.reproduce.cost import run_cost
from ltat.training import train
from tests.training.tiny import TINY

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
ROW = re.compile(r"\| `((?:ours|at-bsl)/[\w-]+)` \| ([\d +]+) \| ([\d.]+) \| ([\d.]+) \| forecast \|")
OWN = [name for name in list_recipes() if name.startswith("ours/") or name.startswith("at-bsl/ema")]
MAIN = {"": "ltat-sd/c10-ir50-rn18/self-distill", "-c100": "ltat-sd/c100-ir10-rn18/self-distill"}


def load(name: str, *assignments: str) -> Asked[RunConfig]:
    return load_config(lambda method: find_method(method).Config, recipe=name, assignments=assignments)


def test_the_page_has_the_epochs_and_the_passes_of_every_recipe():
    rows = {name: (epochs, training, selection) for name, epochs, training, selection in ROW.findall(PAGE.read_text())}
    assert rows.keys() == {name for name in OWN if not name.endswith("-c100")}
    for name, (epochs, training, selection) in rows.items():
        config, cost = load(name).config, run_cost(load(name))
        teacher = [f"{config.teacher.epochs} +"] if "smooth-ltat" in name else []
        assert epochs == " ".join([*teacher, str(config.train.epochs)])
        assert (training, selection) == (f"{cost.training / 1e6:.1f}", f"{cost.selection / 1e6:.1f}"), name


@pytest.mark.parametrize("name", OWN)
def test_no_recipe_costs_more_than_the_papers_run(name: str):
    own, paper = (run_cost(load(recipe)).training for recipe in (name, MAIN["-c100" if "-c100" in name else ""]))
    assert own < 1.01 * paper
    if name.startswith("ours/"):
        assert own > 0.9 * paper  # and none is cheaper by much, so that they compare


@pytest.mark.parametrize("name", OWN)
def test_all_select_on_held_out_images_and_keep_an_average(name: str):
    config = load(name).config
    assert (config.select.set, config.average.kind, config.average.decay_epochs) == ("val", "ema", 5)
    assert config.average.raw == name.startswith("at-bsl")
    assert "forecast" in list_recipes()[name].source
    data = ("cifar100", 10) if name.endswith("-c100") else ("cifar10", 50)
    assert (config.data.name, config.data.imbalance_ratio, config.model.name) == (*data, "resnet18")
    assert config.aug.policy == ("randaugment" if name.startswith("ours/") else "none")


def test_each_is_made_of_the_parts_that_the_page_names():
    bsl, ltat, plain, ema = (
        load(f"ours/{n}").config for n in ("smooth-bsl", "smooth-ltat", "smooth-ltat-plain", "ema-teacher")
    )
    for config in (bsl, ltat, ema):
        assert (config.awp.gamma, config.awp.warmup) == (0.005, 9)
    assert plain.awp.gamma == 0 == ltat.teacher.awp.gamma
    assert bsl.bsl.tau == 1.3 and {bsl.schedule.kind, ema.schedule.kind} == {"cosine"}
    assert {ltat.teacher.average.kind, plain.teacher.average.kind} == {"ema"}
    assert (ema.teacher.train, ema.kd.form, ema.kd.mix, ema.kd.alpha) == ("ema", "kl_clean", "convex", 0.9)


@pytest.mark.parametrize("name", ["smooth-bsl", "smooth-ltat", "ema-teacher"])
def test_it_trains(name: str, tmp_path: Path):
    short = ("train.epochs=2", "awp.warmup=1", 'eval.attacks=["clean"]', "train.batch_size=128")
    more = ("teacher.epochs=1",) if name == "smooth-ltat" else ()
    report = train(load(f"ours/{name}", *TINY, "attack.steps=1", *short, *more), tmp_path)
    assert list(report) == ["best", "last"]
