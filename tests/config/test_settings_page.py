"""The documents name no setting that does not exist; the changelog may name a renamed one."""

import re
from collections import defaultdict
from pathlib import Path

import pytest

from ltat.config.renamed import NAMES
from ltat.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def settings() -> dict[str, set[str]]:
    """The settings of every section, over all methods, as a user writes them."""
    found = defaultdict(set)
    for method in METHODS.values():
        for section in method.Config.model_fields:
            if kind := method.Config.section(section):
                found[section] |= {field.alias or name for name, field in kind.model_fields.items()}
    return dict(found)


SETTINGS = settings()


def unknown_settings(text: str) -> list[str]:
    """Settings that the inline code of a document names, alone or with a value, and that no method has."""
    named = re.findall(rf"`(?:[^`\n]*--set )?'?({'|'.join(SETTINGS)})\.(?!npz|beton)([a-z_]+)(?= ?=|`)", text)
    return sorted({f"{section}.{name}" for section, name in named if name not in SETTINGS[section]})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_no_document_names_a_setting_that_does_not_exist(document):
    old = set(NAMES) if document.name == "CHANGELOG.md" else set()
    assert set(unknown_settings(document.read_text())) - old == set()


def test_a_setting_that_does_not_exist_is_found():
    text = "`attack.eps` `--set kd.bogus=1` `train.shards` `optim.step()` `ltat train --set awp.strength=1`"
    assert unknown_settings(text) == ["awp.strength", "kd.bogus", "train.shards"]
