"""Whole short runs of the plain methods on digits."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from ltat.config import AttackSection, RunConfig, load_config
from ltat.methods import find_method
from ltat.training import train
from ltat.training.schedule import learning_rate
from tests.training.test_resume import Interrupting, assert_same_run, metrics
from tests.training.tiny import tiny_config

NAMES = ["natural", "trades", "mart"]


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


def test_two_epochs_learn(name: str, tmp_path):
    settings = ("train.epochs=2", "train.batch_size=16", "eval.n_examples=200", "select.set=none")
    train(tiny_config(f"method={name}", *settings), tmp_path)
    losses = [row["loss"] for row in metrics(tmp_path)]
    assert losses[1] < losses[0]
    accuracy = json.loads((tmp_path / "report.json").read_text())["last"]
    assert accuracy["clean"]["overall"] > 40
    assert name == "natural" or accuracy["pgd2"]["overall"] > 20  # chance is 10


def test_a_seed_fixes_the_run_and_an_interruption_changes_nothing(name: str, tmp_path):
    config = tiny_config(f"method={name}", "train.epochs=2")
    train(config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", reporter=Interrupting(8))
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_half_precision_stays_finite(name: str, tmp_path):
    train(tiny_config(f"method={name}", "train.epochs=2", "train.precision=bf16"), tmp_path)
    assert all(np.isfinite(row["loss"]) for row in metrics(tmp_path))
    assert all(value.isfinite().all() for value in load_file(tmp_path / "last.safetensors").values())


def faithful(name: str) -> RunConfig:
    return load_config(lambda method: find_method(method).Config, recipe=name).config


@pytest.mark.parametrize(
    ("recipe", "drops", "lowest"),
    [("trades/faithful", [75], 0.01), ("mart/faithful", [75, 90, 100], 1e-5), ("pgd-at/rice", [101, 151], 0.001)],
)
def test_a_recipe_drops_the_rate_in_the_epochs_of_the_reference_code(recipe: str, drops, lowest: float):
    config = faithful(recipe)
    epochs = config.train.epochs
    rates = [learning_rate(config.schedule, config.optim.lr, epoch, epochs) for epoch in range(1, epochs + 1)]
    assert [epoch for epoch in range(2, epochs + 1) if rates[epoch - 1] < rates[epoch - 2]] == drops
    assert rates[-1] == pytest.approx(lowest)


def test_the_recipes_keep_the_quirks_of_the_reference_codes():
    trades, mart, rice = (faithful(name) for name in ("trades/faithful", "mart/faithful", "pgd-at/rice"))
    assert (trades.attack.loss, trades.attack.eps, trades.attack.step_size) == ("kl-self", 0.031, 0.007)
    assert (trades.trades.third_forward, trades.trades.beta, trades.optim.wd) == (True, 6, 2e-4)
    assert (mart.attack.loss, mart.attack.eps, mart.mart.beta, mart.optim.lr) == ("ce", 0.031, 5, 0.01)
    assert (rice.attack.mode, rice.attack.start, rice.aug.pad_mode) == ("train", "uniform_clamp", "reflect")
    assert rice.pgd_at.clean_forward


def test_one_protocol_leaves_every_method_its_own_attack():
    def unified(name: str) -> AttackSection:
        asked = load_config(
            lambda method: find_method(method).Config, recipe="unified/digits", settings={"method": name}
        )
        return asked.config.attack

    assert {unified(name).eps for name in NAMES} == {0.15}
    assert [unified(name).loss for name in ("trades", "mart")] == ["kl-self", "ce"]
    assert {unified(name).steps for name in NAMES} == {10}  # natural training takes none of them, whatever is set
