"""Class 3 of a network and class 3 of the data are compared by name, and mapped only where that is asked for."""

import pytest
import torch

from ltat.errors import LtatError
from ltat.models import build_model, check_classes, load_model, order_classes, put_head, save_model


def named(names: str, head: str = "linear"):
    torch.manual_seed(0)
    model = build_model("small", num_classes=len(names), in_channels=1)
    put_head(model, head)
    if head == "cosine":
        model.linear.offset.copy_(torch.arange(len(names)))
    model.class_names = tuple(names)
    return model.eval()


@pytest.mark.parametrize("data", ["abd", "bac", "abcd"])
def test_other_classes_are_refused_with_both_lists(data: str):
    with pytest.raises(LtatError) as caught:
        check_classes(named("abc"), tuple(data), "--remedy")
    assert "'a', 'b', 'c'" in str(caught.value) and "--remedy" in str(caught.value)
    assert ", ".join(map(repr, data)) in str(caught.value)


@pytest.mark.parametrize("data", ["abc", "", "012"])
def test_the_same_or_no_names_pass(data: str):
    check_classes(named("abc"), tuple(data), "--remedy")
    check_classes(named("012"), tuple("abc"), "--remedy")


def test_long_lists_begin_where_they_differ():
    names = [f"class{i}" for i in range(100)]
    model = build_model("small", num_classes=100, in_channels=1)
    model.class_names = tuple(names)
    with pytest.raises(LtatError) as caught:
        check_classes(model, [*names[:50], "other", *names[51:]], "--remedy")
    assert "'class50'" in str(caught.value) and "'other'" in str(caught.value)
    assert "class49" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("wanted", ["cab", "ca"])
def test_outputs_follow_the_names_for_predictions_and_gradients(head: str, wanted: str):
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    before = named("abc", head)(x)
    model = named("abc", head)
    rows = order_classes(model, tuple(wanted))
    assert rows == ["abc".index(name) for name in wanted]
    after = model(x)
    torch.testing.assert_close(after, before[:, rows])
    torch.testing.assert_close(
        torch.autograd.grad(after[:, 0].sum(), x)[0], torch.autograd.grad(before[:, rows[0]].sum(), x)[0]
    )
    assert (model.class_names, model.num_classes) == (tuple(wanted), len(wanted))


def test_a_mapped_network_can_be_saved(tmp_path):
    model = named("abc")
    order_classes(model, ("c", "a"))
    save_model(model, tmp_path / "mapped", extra={})
    found = load_model(tmp_path / "mapped")
    assert found.class_names == ("c", "a")
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(found(x), model(x))


@pytest.mark.parametrize(
    ("own", "data", "says"),
    [
        ("abc", ("a", "b", "d"), "no class 'd'"),
        ("abc", (), "the data has no class names"),
        ("abc", ("0", "1", "2"), "the data has no class names"),
        ("012", ("a", "b", "c"), "the model has no class names"),
        ("aab", ("a", "b"), "two classes of the model are called 'a'"),
        ("abc", ("a", "a"), "two classes of the data are called 'a'"),
    ],
)
def test_what_cannot_be_mapped_is_refused(own: str, data: tuple[str, ...], says: str):
    with pytest.raises(LtatError, match=says):
        order_classes(named(own), data)
