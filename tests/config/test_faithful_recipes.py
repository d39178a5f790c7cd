"""Recipes of the reference codes: every method has one, and it is what that code does."""

import pytest

from ltat.config import RunConfig, list_recipes, load_config
from ltat.config.resolving import resolve
from ltat.evaluation.attacks import parse_attack
from ltat.methods import METHODS, find_method
from ltat.models import MODELS
from ltat.training.preparing import check_selection
from ltat.training.schedule import learning_rate

OWN = {name for name in list_recipes() if "faithful" in name or name == "pgd-at/rice"}


def load(name: str, *assignments: str) -> RunConfig:
    asked = load_config(lambda method: find_method(method).Config, recipe=name, assignments=assignments)
    return resolve(asked, 10 if asked.config.data.name == "cifar10" else 100)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"natural", "self-distill"}))
def test_every_method_with_a_reference_code_has_its_recipe(method: str):
    assert method in {load(name).method for name in OWN}


@pytest.mark.parametrize("name", sorted(OWN))
def test_what_a_recipe_names_exists_and_its_selection_falls_into_its_epochs(name: str):
    config = load(name)
    assert config.model.name in MODELS
    check_selection(config)
    for attack in config.eval.attacks:
        parse_attack(attack)


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("c10-n", (0.1, 10, 1.2, 0, 6, 1 / 32, 0.1, 10)),
        ("c10-r", (0.1, 10, 1.5, 0.3, 6, 1 / 32, 0, 1)),
        ("c100-n", (0.2, 10, 0, 0, 3, 1 / 32, 1.5, 10)),
        ("c100-r", (0.3, 10, 0, 0, 6, 1 / 16, 1.7, 10)),
    ],
)
def test_robals_four_models_have_their_constants_network_and_subset(name: str, constants):
    config = load(f"robal/faithful-{name}")
    robal = config.robal
    found = (robal.margin, robal.scale, robal.tau_b, robal.tau_m, robal.beta, robal.gamma_w)
    assert (*found, robal.tau_p, robal.scale_out) == constants
    assert (config.model.name, config.train.epochs, config.train.batch_size) == ("wrn34-10", 80, 64)
    data = ("cifar10", 50) if name.startswith("c10-") else ("cifar100", 10)
    assert (config.data.name, config.data.imbalance_ratio) == data


@pytest.mark.parametrize("ratio", [10, 20, 50, 100])
def test_taet_has_a_recipe_for_each_of_its_ratios(ratio: int):
    config = load(f"taet/faithful-ir{ratio}")
    assert (config.data.name, config.data.imbalance_ratio) == ("cifar10", ratio)
    assert config.data.test_imbalance_ratio == ratio
    assert (config.attack.eps, config.attack.step_size, config.taet.clean) == (0.031, 0.003, 0.4)


@pytest.mark.parametrize("name", ["c10-ir50-wrn28-10", "c100-ir10-wrn28-10"])
def test_robustlt_attacks_within_8_255_in_steps_of_2_255_as_its_trainer_does(name: str):
    attack = load(f"robustlt/{name}/at-bsl").attack
    assert (attack.eps, attack.step_size) == (8 / 255, 2 / 255)


@pytest.mark.parametrize("name", ["ard", "rslad", "adaad", "ard+igdm", "rslad+igdm", "adaad+igdm"])
def test_distillation_runs_on_the_whole_set_and_trains_no_teacher_of_its_own(name: str):
    config = load(f"{name}/faithful")
    assert config.data.imbalance_ratio == "natural" and config.teacher.train == "none"
    assert not config.train.drop_last and not config.kd.swap_step_eps


@pytest.mark.parametrize(("dataset", "alpha"), [("cifar10", 1), ("cifar100", 10)])
@pytest.mark.parametrize("base", ["ard", "rslad", "adaad"])
def test_igdm_takes_its_weight_from_the_data_set(base: str, dataset: str, alpha: int):
    assert load(f"{base}+igdm/faithful", f"data.name={dataset}").igdm.alpha == alpha


@pytest.mark.parametrize(
    ("name", "drops"),
    [
        ("at-bsl/faithful", [75, 90, 100]),
        ("reat/faithful", [61, 76]),
        ("taet/faithful-ir50", [76, 91]),
        ("ard/faithful", [101]),
        ("rslad/faithful", [216, 261, 286]),
        ("adaad/faithful", [101, 151]),
        ("adaad+igdm/faithful", [101, 151]),
    ],
)
def test_the_rate_drops_in_the_epochs_of_the_reference_code(name: str, drops: list[int]):
    config = load(name)
    epochs = config.train.epochs
    rates = [learning_rate(config.schedule, config.optim.lr, epoch, epochs) for epoch in range(1, epochs + 1)]
    assert [epoch for epoch in range(2, epochs + 1) if rates[epoch - 1] < rates[epoch - 2]] == drops


def test_the_recipes_select_as_their_codes_do():
    bsl, reat, rslad, adaad = (load(f"{name}/faithful").select for name in ("at-bsl", "reat", "rslad", "adaad"))
    assert (bsl.set, bsl.metric, bsl.from_epoch) == ("test", "pgd20", 75)
    assert (reat.set, reat.metric, reat.from_epoch) == ("test", "pgd20", 1)
    assert (rslad.set, rslad.metric, rslad.from_epoch) == ("test", "pgd20@0.003", 215)
    assert (adaad.set, adaad.metric, adaad.from_epoch) == ("test", "pgd10", 1)
