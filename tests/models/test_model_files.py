import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import ltat
from ltat.errors import LtatError
from ltat.models import build_model, load_model, load_published, read_card, save_model


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def trained(name="small", **keywords):
    torch.manual_seed(0)
    model = build_model(name, **({"num_classes": 5, "in_channels": 1} | keywords))
    model(torch.rand(8, 1, 32, 32))  # moves the batch-norm statistics
    return model


@pytest.fixture
def saved(tmp_path):
    model = trained()
    save_model(model, tmp_path / "best", extra={"epoch": 3})
    return tmp_path / "best.safetensors"


@pytest.mark.parametrize("name", ["small", "resnet18"])
def test_round_trip_is_bit_exact(tmp_path, name):
    model = trained(name, normalize=([0.4], [0.3]))
    save_model(model, tmp_path / "best", extra={}, class_names="abcde")
    found = load_model(tmp_path / "best")
    assert not found.training
    assert found.name == name
    state = model.state_dict()
    assert found.state_dict().keys() == state.keys()
    for key, value in found.state_dict().items():
        assert value.dtype == state[key].dtype
        assert torch.equal(value, state[key])
    images = torch.rand(3, 1, 32, 32)
    assert torch.equal(found(images), model.eval()(images))


@pytest.mark.parametrize("given", ["best", "best.safetensors", "epoch.10", "epoch.10.safetensors"])
@pytest.mark.parametrize("asked", ["", ".safetensors"])
def test_suffix_may_be_given_or_left_out(tmp_path, given, asked):
    save_model(trained(), tmp_path / given, extra={})
    stem = given.removesuffix(".safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{stem}.json", f"{stem}.safetensors"]
    assert ltat.load_model(tmp_path / (stem + asked)).num_classes == 5


def test_channels_last_weights_are_saved_by_value(tmp_path):
    model = trained()
    save_model(model.to(memory_format=torch.channels_last), tmp_path / "best", extra={})
    assert torch.equal(load_model(tmp_path / "best").conv2.weight, model.conv2.weight)


def test_card_keeps_what_it_was_told(tmp_path):
    extra = {"accuracy": np.float64(0.5), "counts": np.array([3, 1]), "method": "at-bsl", "nothing": None}
    save_model(trained(), tmp_path / "best", extra=extra, class_names=("a", "b", "c", "d", "e"))
    card = read_card(tmp_path / "best.safetensors")
    assert card.extra == {"accuracy": 0.5, "counts": [3, 1], "method": "at-bsl", "nothing": None}
    assert (card.name, card.num_classes, card.in_channels, card.normalize) == ("small", 5, 1, None)
    assert card.class_names == ("a", "b", "c", "d", "e")


def test_saving_again_replaces_both_files(tmp_path):
    save_model(trained(), tmp_path / "best", extra={"epoch": 1})
    other = trained()
    with torch.no_grad():
        other.linear.weight.zero_()
    save_model(other, tmp_path / "best", extra={"epoch": 2})
    assert read_card(tmp_path / "best").extra == {"epoch": 2}
    assert not load_model(tmp_path / "best").linear.weight.any()
    assert len(list(tmp_path.iterdir())) == 2


def test_unsavable_extra_leaves_the_old_model_alone(saved):
    before = saved.read_bytes(), saved.with_suffix(".json").read_bytes()
    with pytest.raises(LtatError, match="extra cannot be written as JSON"):
        save_model(trained(), saved, extra={"model": object()})
    assert before == (saved.read_bytes(), saved.with_suffix(".json").read_bytes())


def test_model_outside_the_registry_is_not_saved(tmp_path):
    with pytest.raises(LtatError, match="a Linear cannot be saved"):
        save_model(torch.nn.Linear(2, 2), tmp_path / "best", extra={})
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_none_is_told(saved):
    with pytest.raises(LtatError, match="device 'gpu' cannot be used"):
        load_model(saved, device="gpu")


def test_every_single_byte_of_the_weights_counts(saved):
    intact = saved.read_bytes()
    for position in (0, 9, len(intact) // 2, len(intact) - 1):
        broken = bytearray(intact)
        broken[position] ^= 1
        saved.write_bytes(broken)
        with pytest.raises(LtatError, match="checksum"):
            load_model(saved)
    saved.write_bytes(intact[:-1])
    with pytest.raises(LtatError, match="checksum"):
        load_model(saved)


def test_missing_files_are_named(tmp_path, saved):
    with pytest.raises(LtatError, match=r"no saved model .*nowhere"):
        load_model(tmp_path / "nowhere")
    saved.unlink()
    with pytest.raises(LtatError, match=r"best\.safetensors cannot be read"):
        load_model(saved)
    with pytest.raises(LtatError, match="names no model file"):
        load_model("")


def change_card(saved, **changes):
    path = saved.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"name": "resnet18"}, "another architecture"),
        ({"name": "os.system"}, "unknown model 'os.system'"),
        ({"num_classes": 6}, r"linear.* \(5, 256\) where the model has .*\(6, 256\)"),
        ({"num_classes": 10**12}, "where the model has"),
        ({"num_classes": -1}, "-1 classes"),
        ({"num_classes": "many"}, "not a model card"),
        ({"in_channels": 3}, "conv1"),
        ({"normalize": [[0.5, 0.5], [0.5, 0.5]]}, "does not fit 1 channels"),
        ({"format": 2}, "card format 2"),
        ({"surprise": 1}, "not a model card"),
        ({"sha256": "0" * 64}, "checksum"),
    ],
)
def test_altered_card_is_refused(saved, changes, fragment):
    change_card(saved, **changes)
    with pytest.raises(LtatError, match=fragment) as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "\xff", '{"format": 1}'])
def test_card_that_is_no_card_is_refused(saved, text):
    saved.with_suffix(".json").write_text(text, encoding="latin1")
    with pytest.raises(LtatError, match="not a model card") as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)


def forge(saved, data):
    """Weights under a card that vouches for them."""
    import hashlib

    saved.write_bytes(data)
    change_card(saved, sha256=hashlib.sha256(data).hexdigest())


def test_foreign_weights_are_refused_even_with_a_matching_checksum(saved, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    state = trained().state_dict()
    lacking = {key: value for key, value in state.items() if key != "linear.bias"}
    forgeries = {
        "not a safetensors file": pickle.dumps(Bomb()),
        "lacks 'linear.bias'": safetensors.torch.save(lacking),
        "unexpected 'more'": safetensors.torch.save(state | {"more": torch.zeros(1)}),
        "int64": safetensors.torch.save(state | {"linear.bias": torch.zeros(5, dtype=torch.int64)}),
    }
    for fragment, data in forgeries.items():
        forge(saved, data)
        with pytest.raises(LtatError, match=fragment):
            load_model(saved)
    assert not (tmp_path / "exploded").exists()


# --- published checkpoints


@pytest.mark.parametrize("wrap", ["plain", "module", "nested", "both"])
def test_published_weights_load_whatever_their_wrapping(tmp_path, wrap):
    source, state = trained(), trained().state_dict()
    if wrap in ("module", "both"):
        state = {f"module.{key}": value for key, value in state.items()}
    if wrap in ("nested", "both"):
        state = {"epoch": 3, "state_dict": state}
    torch.save(state, tmp_path / "old.pt")
    model = load_published(build_model("small", num_classes=5, in_channels=1), tmp_path / "old.pt")
    assert torch.equal(model.linear.weight, source.linear.weight)
    assert torch.equal(model.bn1.running_mean, source.bn1.running_mean)


@pytest.mark.parametrize("names", [("mu", "sigma"), ("mean", "std"), ("normalize.mean", "normalize.std")])
@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1)])
def test_normalisation_stored_with_published_weights_is_taken_over(tmp_path, names, shape):
    mean, std = [0.5, 0.25, 0.75], [0.5, 0.25, 0.125]
    source = build_model("small", num_classes=5, normalize=(mean, std)).eval()
    stored = dict(zip(names, (torch.tensor(mean).reshape(shape), torch.tensor(std).reshape(shape)), strict=True))
    torch.save(source.state_dict() | stored, tmp_path / "old.pt")
    x = torch.rand(2, 3, 8, 8)
    for given in (None, (mean, std)):
        model = load_published(build_model("small", num_classes=5, normalize=given), tmp_path / "old.pt").eval()
        assert torch.equal(model(x), source(x))
        save_model(model, tmp_path / "new", extra={})
        assert torch.equal(load_model(tmp_path / "new")(x), source(x))
    other = build_model("small", num_classes=5, normalize=(mean, [0.5, 0.5, 0.5]))
    before = other.linear.weight.clone()
    with pytest.raises(LtatError, match="normalises by"):
        load_published(other, tmp_path / "old.pt")
    assert torch.equal(other.linear.weight, before)


def test_normalisation_of_other_channels_is_refused(tmp_path):
    stored = {"mu": torch.zeros(1, 3, 1, 1), "sigma": torch.ones(1, 3, 1, 1)}
    torch.save(trained().state_dict() | stored, tmp_path / "old.pt")
    with pytest.raises(LtatError, match="does not fit 1 channels"):
        load_published(build_model("small", num_classes=5, in_channels=1), tmp_path / "old.pt")


def test_old_wide_checkpoints_lose_their_unused_block():
    with torch.device("meta"):
        model = build_model("wrn34-10", num_classes=10)
    from ltat.models.published import published_state

    state = model.state_dict()
    extra = {key.replace("block1", "sub_block1", 1): value for key, value in state.items() if key.startswith("block1")}
    assert extra
    assert published_state(model, {f"module.{key}": v for key, v in (state | extra).items()}).keys() == state.keys()


def test_checkpoints_from_before_batch_counting_load(tmp_path):
    state = {key: value for key, value in trained().state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "old.pt")
    load_published(build_model("small", num_classes=5, in_channels=1), tmp_path / "old.pt")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ({"linear.bias": torch.zeros(5)}, "lacks"),
        ([1, 2], "no state dict"),
        ({}, "no state dict"),
        ({"state_dict": {"a": 1}}, "no state dict"),
        (torch.zeros(3), "no state dict"),
    ],
)
def test_foreign_checkpoint_is_refused(tmp_path, content, fragment):
    torch.save(content, tmp_path / "old.pt")
    with pytest.raises(LtatError, match=fragment):
        load_published(build_model("small", num_classes=5, in_channels=1), tmp_path / "old.pt")


def test_checkpoint_never_runs_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, "bomb.pt")
    Path("raw.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    for file in ("bomb.pt", "raw.pt"):
        with pytest.raises(LtatError, match="without running code"):
            load_published(trained(), file)
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("data", "fragment"),
    [(b"", "plain state dict"), (b"\n<!DOCTYPE html><html>", "a web page"), (b"PK\x03\x04junk", "plain state dict")],
)
def test_file_that_is_no_checkpoint_is_refused(tmp_path, data, fragment):
    (tmp_path / "old.pt").write_bytes(data)
    with pytest.raises(LtatError, match=fragment) as caught:
        load_published(trained(), tmp_path / "old.pt")
    assert "\n" not in str(caught.value)
    with pytest.raises(LtatError, match="no file"):
        load_published(trained(), tmp_path / "nowhere.pt")


def test_loading_does_not_shift_the_callers_random_numbers(saved):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_model(saved)
    assert torch.equal(torch.rand(4), expected)
