"""A saved model keeps its last layer, and a card cannot name one that is not ours."""

import json
from pathlib import Path

import pytest
import torch

from ltat.errors import LtatError
from ltat.models import CosineClassifier, build_model, load_model, put_head, read_card, save_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = build_model("small", num_classes=5, in_channels=1)
    put_head(model, "cosine")
    model.classifier.scale.fill_(10)
    model.classifier.gamma.fill_(0.5)
    model.classifier.offset.copy_(torch.arange(5))
    save_model(model, tmp_path / "best", extra={})
    torch.save(model.eval()(torch.full((2, 1, 8, 8), 0.3)), tmp_path / "logits")
    return tmp_path / "best.json"


def with_head(card: Path, head: object) -> Path:
    card.write_text(json.dumps({**json.loads(card.read_text()), "head": head}))
    return card.with_suffix("")


def test_a_cosine_head_comes_back_with_its_constants(saved: Path):
    model = load_model(saved.with_suffix(""))
    assert read_card(saved.with_suffix("")).head == model.head == "cosine"
    assert isinstance(model.classifier, CosineClassifier)
    assert torch.equal(model(torch.full((2, 1, 8, 8), 0.3)), torch.load(saved.parent / "logits"))


def test_a_card_from_before_heads_means_the_linear_layer(tmp_path: Path):
    save_model(build_model("small", num_classes=5, in_channels=1), tmp_path / "best", extra={})
    card = json.loads((tmp_path / "best.json").read_text())
    assert card.pop("head") == "linear"
    (tmp_path / "best.json").write_text(json.dumps(card))
    assert load_model(tmp_path / "best").head == "linear"


@pytest.mark.parametrize("head", ["torch.nn.Identity", "", "os.system"])
def test_a_head_outside_the_registry_is_refused_by_its_name(saved: Path, head: str):
    with pytest.raises(LtatError, match="unknown head"):
        load_model(with_head(saved, head))


@pytest.mark.parametrize("head", [None, 3, ["cosine"]])
def test_a_head_that_is_no_name_is_refused(saved: Path, head: object):
    with pytest.raises(LtatError, match="not a model card"):
        load_model(with_head(saved, head))


def test_weights_under_another_head_are_refused(saved: Path):
    with pytest.raises(LtatError, match="another architecture"):
        load_model(with_head(saved, "linear"))
