"""How a file of recipes reads: which settings a recipe has, and what a wrong file says."""

from importlib import resources
from pathlib import Path

import pytest

from ltat.config import from_toml, list_recipes, load_config
from ltat.config.recipes import find_recipe, recipes_of
from ltat.config.toml import parsed_toml
from ltat.errors import LtatError
from ltat.methods import find_method

TABLES = """
source = "A. Paper, 2026."
train.epochs = 100
attack = { eps = "8/255", steps = 10 }

[recipe."mine/c10/*"]
source = "Table 1."
rows = ["pgd-at", "trades", "trades-ra"]
data.name = "cifar10"

[recipe."mine/*-ra"]
aug.policy = "randaugment"

[recipe."mine/*/trades*"]
source = '''
TRADES
of its authors.
'''
method = "trades"
trades.beta = 5
trades.third_forward = true

[recipe."mine/c10/trades"]
train.epochs = 90
trades.beta = 6

[recipe."mine/last"]
method = "pgd-at"
"""

NAMES = ["mine/c10/pgd-at", "mine/c10/trades", "mine/c10/trades-ra", "mine/last"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(TABLES)
    return path


def test_a_recipe_has_the_files_settings_and_those_of_every_table_that_fits_its_name_the_later_winning(file: Path):
    recipes = recipes_of(from_toml(file), file.name)
    assert list(recipes) == NAMES
    attack = {"eps": "8/255", "steps": 10}
    plain, trades, ra, last = (recipes[name].settings for name in NAMES)
    assert plain == {"train": {"epochs": 100}, "attack": attack, "data": {"name": "cifar10"}}
    assert last == {"train": {"epochs": 100}, "attack": attack, "method": "pgd-at"}
    beta = {"beta": 6, "third_forward": True}
    assert trades == {**plain, "train": {"epochs": 90}, "method": "trades", "trades": beta}
    assert ra == {**plain, "aug": {"policy": "randaugment"}, "method": "trades", "trades": {**beta, "beta": 5}}


def test_a_recipes_source_is_what_the_file_and_its_tables_say_as_one_line(file: Path):
    recipes = recipes_of(from_toml(file), file.name)
    assert recipes["mine/c10/trades-ra"].source == "A. Paper, 2026. Table 1. TRADES of its authors."


def test_the_example_of_the_documentation_reads_as_it_says():
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    recipes = recipes_of(parsed_toml(page.partition("```toml\n")[2].partition("```")[0]), "recipes.md")
    assert list(recipes) == [
        f"mine/{row}" for row in ("c10/pgd-at", "c10/trades", "c10/trades-ra", "c100/pgd-at", "c100/trades")
    ]
    assert recipes["mine/c10/trades-ra"].settings == {
        "eval": {"attacks": ["clean", "pgd20"]},
        "data": {"name": "cifar10", "imbalance_ratio": 50},
        "method": "trades",
        "aug": {"policy": "randaugment"},
    }


def test_a_recipe_of_ones_own_file_is_run_by_its_name(file: Path):
    config = load_config(lambda name: find_method(name).Config, recipe=f"{file}:mine/c10/trades").config
    assert (config.method, config.train.epochs, config.attack.eps) == ("trades", 90, 8 / 255)


def test_a_radius_of_the_file_is_not_taken_over_into_another_norm(file: Path):
    file.write_text('attack.eps = "8/255"\n[recipe.a]\nattack.norm = "l2"\n')
    assert find_recipe(f"{file}:a") == {"attack": {"norm": "l2"}}


@pytest.mark.parametrize(
    "path", sorted((Path(str(resources.files("ltat"))) / "recipes").glob("*.toml")), ids=lambda path: path.name
)
def test_a_file_of_the_package_can_be_copied_and_no_two_files_hold_one_name(path: Path):
    own = recipes_of(from_toml(path), path.name)
    known = list_recipes()
    assert {name: known[name] for name in own} == own


def message(name: str) -> str:
    with pytest.raises(LtatError) as error:
        find_recipe(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_unknown_name_and_a_left_out_name_list_those_of_the_file(file: Path):
    for name in (f"{file}", f"{file}:mine/c10/mart"):
        assert all(known in message(name) for known in NAMES)


def test_an_unknown_name_of_the_package_is_answered_by_similar_ones_and_the_command_that_lists_all():
    for name, similar in (
        ("at-bsl", "at-bsl/faithful"),
        ("trade/faithfull", "trades/faithful"),
        ("nothing like it", ""),
    ):
        said = message(name)
        assert similar in said and "`ltat train --list-recipes`" in said and len(said) < 250


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('[recipe."a/*"]\nrows = ["x"]\n[recipe."b/*"]\n', ['[recipe."b/*"]', "a/x"]),
        ('[recipe."a/*"]\n', ['[recipe."a/*"]', "(none)"]),
        ('[recipe."a/x"]\nrows = ["x"]\n', ['[recipe."a/x"]', "the one *", "rows ="]),
        ('[recipe."a/*"]\nrows = "x"\n', ['[recipe."a/*"]', "rows ="]),
        ('[recipe."a/*"]\nrows = [1]\n', ['[recipe."a/*"]', "rows ="]),
        ("recipe = 3\n", ["no named recipe", "[recipe."]),
        ("[recipe]\n", ["no named recipe"]),
        ("[recipe]\nmethod = 'trades'\n", ["no named recipe"]),
        ("[train]\nepochs = 1\n", ["no named recipe", "leave the name out"]),
    ],
)
def test_a_file_that_is_written_wrongly_says_where_and_what_there_is(file: Path, text: str, names: list[str]):
    file.write_text(text)
    said = message(f"{file}:a/x")
    assert all(name in said for name in [file.name, *names]), said


@pytest.mark.parametrize("text", ['method = "unheard"\n', '[recipe.a]\nmethod = "unheard"\n', "[method.unheard]\n"])
def test_a_recipe_of_an_unknown_method_names_the_methods(file: Path, text: str):
    file.write_text(text)
    name = f"{file}:a" if "recipe" in text else file
    with pytest.raises(LtatError, match=r"unheard.*at-bsl"):
        load_config(lambda method: find_method(method).Config, recipe=name)
