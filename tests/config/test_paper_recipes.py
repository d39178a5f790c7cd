"""Recipes of the main paper: every row of its tables has one, and it is the setting that its name says."""

import pytest

from ltat.config import list_recipes, load_config
from ltat.methods import find_method

PLAIN = ["pgd-at", "trades", "mart", "awp"]
LONGTAIL = ["robal", "reat", "at-bsl", "self-distill"]
POLICIES = {"": "none", "-ra": "randaugment", "-aua": "autoaugment"}

ROWS = {
    "c10-ir50-rn18": PLAIN + LONGTAIL,  # Table 1
    "c100-ir10-rn18": [  # Tables 2, 4, 5, 6 and 10
        *PLAIN,
        *(method + policy for method in LONGTAIL for policy in POLICIES),
        "balanced-teacher",
    ],
    "tiny-ir10-prn18": PLAIN + LONGTAIL,  # Table 3
    "c100-ir5-rn18": LONGTAIL,  # Table 5
    "c100-ir20-rn18": LONGTAIL,
    "c100-ir50-rn18": LONGTAIL,
    "c10-ir50-wrn34-10": PLAIN + LONGTAIL,  # Table 7
    "c100-ir10-wrn34-10": PLAIN + LONGTAIL,  # Table 8
}
DATASETS = {"c10": "cifar10", "c100": "cifar100", "tiny": "tiny-imagenet"}
NETWORKS = {"rn18": "resnet18", "prn18": "preactresnet18", "wrn34-10": "wrn34-10"}
RECIPES = [f"ltat-sd/{setting}/{row}" for setting, rows in ROWS.items() for row in rows]


def test_the_rows_of_the_tables_and_the_recipes_are_the_same():
    assert {name for name in list_recipes() if name.startswith("ltat-sd/")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_the_setting_that_its_name_says(name: str):
    config = load_config(lambda method: find_method(method).Config, recipe=name).config
    _, setting, row = name.split("/")
    dataset, ratio, network = setting.split("-", maxsplit=2)
    assert (config.data.name, config.data.imbalance_ratio) == (DATASETS[dataset], int(ratio.removeprefix("ir")))
    assert config.model.name == NETWORKS[network]
    suffix = next((end for end in ("-ra", "-aua") if row.endswith(end)), "")
    assert config.aug.policy == POLICIES[suffix]
    assert config.attack.eps == 8 / 255
    assert {"clean", "pgd20", "autoattack"} <= set(config.eval.attacks)  # the columns of the tables
    if row == "balanced-teacher":
        assert (config.method, config.data.sampling, config.train.epochs) == ("pgd-at", "balanced", 30)
        return
    assert config.method == ("pgd-at" if row == "awp" else row.removesuffix(suffix))
    assert (config.awp.gamma > 0) == (row == "awp")
    assert (config.data.sampling, config.select.set) == ("natural", "test")
