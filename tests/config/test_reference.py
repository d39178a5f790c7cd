"""The settings in words: they stand at the settings, and everywhere else they are printed from there."""

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from ltat.cli.main import main
from ltat.cli.settings_page import page
from ltat.config import Section
from ltat.config.reference import commented_toml
from ltat.methods import METHODS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def unexplained(kind: type[Section]) -> set[str]:
    names: set[str] = set()
    for name, field in kind.model_fields.items():
        section = kind.section(name)
        if section is not None:
            names |= unexplained(section)
        elif name != "method" and not (field.description or "").endswith("."):
            names.add(f"{kind.__name__}.{name}")
    return names


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_is_explained_in_a_sentence(method: str):
    assert unexplained(METHODS[method].Config) == set()


def test_the_page_of_settings_says_what_the_settings_say():
    text = PAGE.read_text(encoding="utf-8")
    assert page(text) == text, "run: python -m ltat.cli.settings_page docs/settings.md"


@pytest.mark.parametrize("method", METHODS)
def test_the_commented_settings_are_the_settings(method: str):
    config = METHODS[method].Config()
    expected = config.model_dump(by_alias=True, mode="json", exclude_none=True)
    assert tomllib.loads(commented_toml(config)) == expected


def test_a_method_is_explained_with_its_own_settings():
    shown = CliRunner().invoke(main, ["methods", "taet"]).stdout
    assert shown.startswith("TAET (Wang et al., CVPR 2025")
    assert "    taet.absent=zero\n        A class that is not in the batch" in shown
    assert "attack.steps" not in shown.partition("\ntaet: ")[2]
    assert CliRunner().invoke(main, ["methods", "taat"]).exit_code == 2
