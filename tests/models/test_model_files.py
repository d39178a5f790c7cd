import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import ltat
from ltat import memory
from ltat.errors import LtatError
from ltat.models import build_model, load_model, load_published, load_weights, put_head, read_card, save_model


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


def test_card_keeps_what_it_was_reported(tmp_path):
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


def test_a_reader_between_the_two_renames_of_a_training_waits_for_the_second(saved, monkeypatch):
    old = saved.with_suffix(".json").read_bytes()
    torch.manual_seed(1)
    save_model(build_model("small", num_classes=5, in_channels=1), saved, extra={"epoch": 4})
    new = saved.with_suffix(".json").read_bytes()
    for read in (load_model, lambda path: load_weights(trained(), path)):
        saved.with_suffix(".json").write_bytes(old)
        monkeypatch.setattr("time.sleep", lambda seconds: saved.with_suffix(".json").write_bytes(new))
        read(saved)
    assert read_card(saved).extra == {"epoch": 4}


def test_unsavable_extra_leaves_the_old_model_alone(saved):
    before = saved.read_bytes(), saved.with_suffix(".json").read_bytes()
    with pytest.raises(LtatError, match="extra cannot be written as JSON"):
        save_model(trained(), saved, extra={"model": object()})
    assert before == (saved.read_bytes(), saved.with_suffix(".json").read_bytes())


def test_model_outside_the_registry_is_not_saved(tmp_path):
    with pytest.raises(LtatError, match="a Linear cannot be saved"):
        save_model(torch.nn.Linear(2, 2), tmp_path / "best", extra={})
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_none_is_reported(saved):
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
        ({"num_classes": 10**6}, "where the model has"),
        ({"num_classes": 2**62}, "4611686018427387904 classes"),
        ({"num_classes": 10**400}, "not a model card .num_classes"),
        ({"in_channels": 2**62}, "4611686018427387904 channels"),
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


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, "9" * 5000, "\xff", '{"format": 1}'])
def test_card_that_is_no_card_is_refused(saved, text):
    saved.with_suffix(".json").write_text(text, encoding="latin1")
    with pytest.raises(LtatError, match="not a model card") as caught:
        load_model(saved)
    assert "\n" not in str(caught.value)


def test_a_card_may_begin_with_a_byte_order_mark(saved):
    card = saved.with_suffix(".json")
    card.write_bytes(b"\xef\xbb\xbf" + card.read_bytes())
    load_model(saved)


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "giant"])
def test_what_would_be_read_without_end_is_no_saved_model(saved, suffix, kind):
    path = saved.with_suffix(suffix)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 1 << 42)  # without a byte on the disk
    with pytest.raises(LtatError, match="a pipe or a device" if kind != "giant" else "are the most"):
        load_model(saved)


def test_a_published_file_that_is_a_pipe_or_unpacks_to_a_giant_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.pt")
    with pytest.raises(LtatError, match="a pipe or a device"):
        load_published(trained(), tmp_path / "pipe.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10_000_000))
    monkeypatch.setattr(memory, "free_memory", lambda: 1_000_000)
    with pytest.raises(LtatError, match="GB of memory"):
        load_published(trained(), tmp_path / "bomb.pt")


def test_a_folder_that_may_not_be_searched_is_one_sentence(saved, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "exists", denied)
    with pytest.raises(LtatError, match="cannot be looked for"):
        load_model(saved)


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


def test_old_wide_checkpoints_lose_their_unused_block(tmp_path):
    state = trained().state_dict()
    extra = {"sub_block1.layer.0.bn1.weight": torch.zeros(160)}
    torch.save({f"module.{key}": value for key, value in (state | extra).items()}, tmp_path / "old.pt")
    model = load_published(build_model("small", num_classes=5, in_channels=1), tmp_path / "old.pt")
    assert torch.equal(model.linear.weight, state["linear.weight"])


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
    with pytest.raises(LtatError, match="No such file"):
        load_published(trained(), tmp_path / "nowhere.pt")


def test_loading_does_not_shift_the_callers_random_numbers(saved):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_model(saved)
    assert torch.equal(torch.rand(4), expected)


# --- several sets of weights in one file


def prefixed(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def shifted(state):
    return {key: value + 1 for key, value in state.items()}


def plain():
    return build_model("small", num_classes=5, in_channels=1)


@pytest.mark.parametrize(
    ("content", "raw", "averaged"),
    [
        (lambda raw, ema: {"model": raw, "ema": ema, "optimizer": {"state": {0: raw}}}, "model", "ema"),
        (lambda raw, ema: {"state_dict": raw, "state_dict_ema": ema}, "state_dict", "state_dict_ema"),
        (lambda raw, ema: {"net": prefixed("module.", raw), "model_ema": {"module": ema}}, "net", "model_ema"),
        (
            lambda raw, ema: {"model": raw, "swa": prefixed("module.", ema) | {"n_averaged": ema["bn1.bias"][0]}},
            "model",
            "swa",
        ),
        (lambda raw, ema: {"callbacks": {"EMA": {"weights": ema}}, "state_dict": raw}, "state_dict", "callbacks.EMA"),
        (
            lambda raw, ema: prefixed("online_model.", raw) | prefixed("ema_model.", ema) | {"step": torch.tensor(3)},
            "online_model",
            "ema_model",
        ),
        (lambda raw, ema: raw | {"ema": ema}, "", "ema"),
    ],
)
def test_raw_weights_never_load_where_an_average_lies_beside_them(tmp_path, content, raw, averaged):
    state = trained().state_dict()
    torch.save(content(state, shifted(state)), tmp_path / "two.pt")
    with pytest.raises(LtatError, match="several sets of weights") as caught:
        load_published(plain(), tmp_path / "two.pt")
    assert all(f"'{name}" in str(caught.value) for name in (raw, averaged))
    chosen = {name: load_published(plain(), tmp_path / "two.pt", weights=name) for name in (raw, averaged)}
    assert torch.equal(chosen[raw].conv1.weight, state["conv1.weight"])
    assert torch.equal(chosen[averaged].conv1.weight, state["conv1.weight"] + 1)
    with pytest.raises(LtatError, match="no set of weights called 'other'"):
        load_published(plain(), tmp_path / "two.pt", weights="other")


def test_an_average_of_the_parameters_alone_counts_as_a_set(tmp_path):
    state = trained().state_dict()
    parameters = {key: value for key, value in state.items() if "running" not in key and "num_" not in key}
    torch.save({"model": state, "ema": parameters}, tmp_path / "two.pt")
    with pytest.raises(LtatError, match="several sets of weights"):
        load_published(plain(), tmp_path / "two.pt")
    with pytest.raises(LtatError, match=r"lacks 'bn1\.running_mean'"):
        load_published(plain(), tmp_path / "two.pt", weights="ema")


def test_an_average_without_names_is_reported_and_passed_by_on_request(tmp_path):
    state = trained().state_dict()
    torch.save({"model": state, "ema": {"shadow_params": list(state.values())}}, tmp_path / "two.pt")
    with pytest.raises(LtatError, match=r"ema\.shadow_params without names"):
        load_published(plain(), tmp_path / "two.pt")
    loaded = load_published(plain(), tmp_path / "two.pt", weights="model")
    assert torch.equal(loaded.linear.weight, state["linear.weight"])


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.",
        "_orig_mod.module.",
        "module._orig_mod.",
        "module.module._orig_mod.model.",
        "_fsdp_wrapped_module.network.module.",
    ],
)
def test_wrappers_are_stripped_in_any_order(tmp_path, prefix):
    net = trained()
    state = {prefix + key.replace("conv2.", "conv2._orig_mod."): value for key, value in net.state_dict().items()}
    torch.save({"epoch": 1, "model": state}, tmp_path / "wrapped.pt")
    assert torch.equal(load_published(plain(), tmp_path / "wrapped.pt").conv2.weight, net.conv2.weight)


def test_an_averaged_model_in_parallel_loads(tmp_path):
    net = trained()
    wrapped = torch.nn.DataParallel(torch.optim.swa_utils.AveragedModel(net))
    torch.save(wrapped.state_dict(), tmp_path / "averaged.pt")
    assert torch.equal(load_published(plain(), tmp_path / "averaged.pt").linear.weight, net.linear.weight)


def test_part_of_a_larger_network_is_not_taken_for_it(tmp_path):
    larger = torch.nn.Sequential(trained(), torch.nn.Linear(5, 5))
    torch.save(larger.state_dict(), tmp_path / "larger.pt")
    with pytest.raises(LtatError, match=r"unexpected '1\.(bias|weight)'"):
        load_published(plain(), tmp_path / "larger.pt")


def test_normalisation_layer_before_the_network_is_taken_over(tmp_path):
    first = torch.nn.Module()
    first.register_buffer("mean", torch.tensor([0.5]))
    first.register_buffer("std", torch.tensor([0.25]))
    torch.save(torch.nn.Sequential(first, trained()).state_dict(), tmp_path / "both.pt")
    assert load_published(plain(), tmp_path / "both.pt").normalization == ([0.5], [0.25])


def test_a_checkpoint_that_contains_itself_ends(tmp_path):
    content = {"state_dict": trained().state_dict()}
    content["again"] = content
    torch.save(content, tmp_path / "loop.pt")
    load_published(plain(), tmp_path / "loop.pt")


# --- the names of RoBal's and REAT's code, laid out by hand: no file of theirs is at hand


def robal_layout(state, classifier):
    body = {key: value for key, value in state.items() if not key.startswith("linear.")}
    return prefixed("model.module.", prefixed("backbone.", body) | prefixed("classifier.", classifier))


def test_names_of_robal_load_into_a_cosine_head(tmp_path):
    source = trained()
    put_head(source, "cosine")
    classifier = {"weight": source.linear.weight.detach(), "bias": torch.zeros(5), "moving_ed": torch.rand(1, 256)}
    torch.save(robal_layout(source.state_dict(), classifier), tmp_path / "epoch80.pt")
    with pytest.raises(LtatError, match="put_head"):
        load_published(plain(), tmp_path / "epoch80.pt")
    model = plain()
    put_head(model, "cosine")
    model.linear.gamma.fill_(1 / 16)
    load_published(model, tmp_path / "epoch80.pt")
    assert torch.equal(model.linear.weight, source.linear.weight)
    assert model.linear.gamma == 1 / 16
    assert torch.equal(model.conv2.weight, source.conv2.weight)
    torch.save(robal_layout(source.state_dict(), classifier | {"bias": torch.ones(5)}), tmp_path / "biased.pt")
    with pytest.raises(LtatError, match="is not zero"):
        load_published(model, tmp_path / "biased.pt")


def test_names_of_robals_baselines_load_into_a_linear_head(tmp_path):
    source = trained()
    classifier = prefixed("fc.", source.linear.state_dict())
    torch.save(robal_layout(source.state_dict(), classifier), tmp_path / "epoch80.pt")
    model = load_published(plain(), tmp_path / "epoch80.pt").eval()
    x = torch.rand(2, 1, 32, 32)
    assert torch.equal(model(x), source.eval()(x))


def test_names_of_reats_resnet_load(tmp_path):
    source = build_model("resnet18", num_classes=2)
    inside = {"conv1": "0", "bn1": "1", "conv2": "3", "bn2": "4"}
    theirs = {}
    for key, value in source.state_dict().items():
        parts = key.split(".")
        if parts[0] in inside:
            name = ".".join(["conv1", inside[parts[0]], *parts[1:]])
        elif parts[0] == "linear":
            name = ".".join(["fc", *parts[1:]])
        elif parts[2] in inside:
            name = ".".join([*parts[:2], "residual_function", inside[parts[2]], *parts[3:]])
        else:
            name = key
        theirs[name] = value
    assert {"conv1.0.weight", "layer2.0.residual_function.4.running_var", "layer2.0.shortcut.1.bias"} < theirs.keys()
    torch.save({"state_dict": theirs, "epoch": 79}, tmp_path / "M2.pkllast.pkl")
    model = load_published(build_model("resnet18", num_classes=2), tmp_path / "M2.pkllast.pkl").eval()
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(model(x), source.eval()(x))


# --- normalisation inside the network is never lost


@pytest.fixture
def normalising(tmp_path):
    model = build_model("small", num_classes=5, normalize=([0.5, 0.25, 0.75], [0.5, 0.25, 0.125])).eval()
    save_model(model, tmp_path / "best", extra={})
    return model, tmp_path / "best.safetensors"


def test_bare_weights_of_a_normalising_network_do_not_load_into_a_plain_one(normalising):
    _, path = normalising
    with pytest.raises(RuntimeError, match=r"normalize\.mean"):
        build_model("small", num_classes=5).load_state_dict(safetensors.torch.load_file(path))
    for normalize in (None, ([0.5] * 3, [0.5] * 3)):
        with pytest.raises(LtatError, match="normalises its images"):
            load_weights(build_model("small", num_classes=5, normalize=normalize), path)


@pytest.mark.parametrize("card", [True, False])
def test_load_published_restores_the_normalisation_of_our_own_weights(normalising, card):
    model, path = normalising
    if not card:
        path.with_suffix(".json").unlink()
    restored = load_published(build_model("small", num_classes=5), path).eval()
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(restored(x), model(x))


def test_weights_saved_before_their_file_reported_the_normalisation_still_load(normalising):
    model, path = normalising
    forge(path, safetensors.torch.save(model.state_dict()))
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(load_model(path)(x), model(x))
    assert torch.equal(load_published(build_model("small", num_classes=5), path).eval()(x), model(x))


@pytest.mark.parametrize("normalize", [None, [[0.5, 0.25, 0.5], [0.5, 0.25, 0.125]]])
def test_a_card_that_tells_another_normalisation_is_refused(normalising, normalize):
    _, path = normalising
    change_card(path, normalize=normalize)
    with pytest.raises(LtatError, match="differ in the normalisation"):
        load_model(path)


def test_class_names_stay_with_the_model(tmp_path):
    save_model(trained(), tmp_path / "best", extra={}, class_names="abcde")
    found = load_model(tmp_path / "best")
    assert found.class_names == tuple("abcde")
    save_model(found, tmp_path / "again", extra={})
    assert read_card(tmp_path / "again").class_names == tuple("abcde")
    with pytest.raises(LtatError, match="4 class names for 5 classes"):
        save_model(found, tmp_path / "again", extra={}, class_names="abcd")
