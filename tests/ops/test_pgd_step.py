import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltat.errors import LtatError
from ltat.ops import pgd_step, pgd_step_twin
from tests.marks import needs_cuda
from tests.ops.layouts import LAYOUTS, shifted

RELAXED = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SHAPES = st.one_of(
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 7), st.integers(1, 70)),
    st.tuples(st.integers(1, 9)),
)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
NORMS = st.sampled_from(["linf", "l2"])


def per_sample(amount: float | Tensor, ndim: int) -> float | np.ndarray:
    """Broadcastable float64; a Python number as the float32 the kernels compute with."""
    if isinstance(amount, Tensor):
        return amount.cpu().double().numpy().reshape(-1, *[1] * (ndim - 1))
    return float(np.float32(amount))


def reference(x_adv, grad, x, *, eps, step, norm, box=(0.0, 1.0)):
    """The definition in float64, written sample-free for linf and with explicit norms for l2."""
    a, g, c = (t.detach().cpu().double().numpy() for t in (x_adv, grad, x))
    eps, step = per_sample(eps, a.ndim), per_sample(step, a.ndim)
    if norm == "linf":
        moved = a + step * np.sign(g)
        return np.clip(np.clip(moved, c - eps, c + eps), *box)
    axes = tuple(range(1, a.ndim))
    length = np.sqrt((g**2).sum(axis=axes, keepdims=True)) if axes else np.abs(g)
    direction = np.divide(g, length, out=np.zeros_like(g), where=length > 0)
    delta = a + step * direction - c
    radius = np.sqrt((delta**2).sum(axis=axes, keepdims=True)) if axes else np.abs(delta)
    shrink = np.minimum(1.0, np.divide(eps, radius, out=np.ones_like(radius), where=radius > 0))
    return np.clip(c + delta * shrink, *box)


def make_inputs(shape, dtype, seed, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator)
    x_adv = x + 0.2 * (torch.rand(shape, generator=generator) - 0.5)
    grad = torch.randn(shape, generator=generator)
    grad[torch.rand(shape, generator=generator) < 0.1] = 0.0
    return x_adv.to(device), grad.to(device, dtype), x.to(device)


@RELAXED
@given(
    shape=SHAPES,
    dtype=DTYPES,
    norm=NORMS,
    layouts=st.tuples(*[st.sampled_from(sorted(LAYOUTS))] * 3),
    each=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_layout_and_dtype_gives_the_defined_step(device, *, shape, dtype, norm, layouts, each, seed):
    values = make_inputs(shape, dtype, seed, device)
    x_adv, grad, x = (LAYOUTS[name](value) for name, value in zip(layouts, values, strict=True))
    eps = torch.linspace(0.0, 0.3, shape[0], device=device) if each else 0.07
    step = torch.linspace(-0.1, 0.2, shape[0], device=device) if each else 0.03
    got = pgd_step(x_adv, grad, x, eps=eps, step=step, norm=norm)
    assert got.shape == x_adv.shape and got.dtype == torch.float32
    assert got.stride() == torch.empty_like(x_adv).stride()
    np.testing.assert_allclose(got.cpu(), reference(x_adv, grad, x, eps=eps, step=step, norm=norm), rtol=0, atol=3e-7)
    twin = pgd_step_twin(x_adv, grad, x, eps=eps, step=step, norm=norm)
    if norm == "linf":
        assert torch.equal(got, twin)
    torch.testing.assert_close(got, twin, rtol=0, atol=3e-7)
    in_place = x_adv.clone(memory_format=torch.preserve_format)
    assert torch.equal(pgd_step(in_place, grad, x, eps=eps, step=step, norm=norm, inplace=True), got)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_in_place_writes_its_view_and_nothing_beside_it(device, layout, norm):
    x_adv, grad, x = make_inputs((4, 3, 6, 8), torch.float32, 1, device)
    view = LAYOUTS[layout](x_adv)
    storage = view._base
    before = None if storage is None else storage.clone()
    result = pgd_step(view, grad, x, eps=0.05, step=0.02, norm=norm, inplace=True)
    assert result.data_ptr() == view.data_ptr()
    assert torch.equal(result, view)
    torch.testing.assert_close(view, pgd_step_twin(x_adv, grad, x, eps=0.05, step=0.02, norm=norm), rtol=0, atol=3e-7)
    if before is not None:
        mask = torch.ones_like(storage, dtype=torch.bool)
        mask.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(False)
        assert torch.equal(storage[mask], before[mask])


def test_expanded_inputs_are_read_as_what_they_stand_for(device):
    x_adv, grad, x = make_inputs((1, 3, 4, 4), torch.float32, 2, device)
    many = [t.expand(5, 3, 4, 4) for t in (x_adv, grad, x)]
    got = pgd_step(*many, eps=0.1, step=0.02)
    assert torch.equal(got, pgd_step(*(t.contiguous() for t in many), eps=0.1, step=0.02))
    with pytest.raises(LtatError, match="expanded"):
        pgd_step(*many, eps=0.1, step=0.02, inplace=True)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("other", ["grad", "x", "eps"])
def test_an_in_place_step_over_what_it_still_reads_is_refused(device, other, norm):
    memory = torch.rand(2000, device=device)
    tensors = dict(zip(("x_adv", "grad", "x"), make_inputs((4, 200), torch.float32, 8, device), strict=True))
    tensors |= {"x_adv": memory[100:900].view(4, 200), "eps": torch.full((4,), 0.1, device=device)}
    near = (memory[896:900],) if other == "eps" else (memory[o : o + 800].view(4, 200) for o in (0, 99, 101, 899))
    for overlapping in near:
        before = memory.clone()
        with pytest.raises(LtatError, match=f"x_adv and {other} overlap in memory; clone"):
            pgd_step(**(tensors | {other: overlapping}), step=0.02, norm=norm, inplace=True)
        assert torch.equal(memory, before), "nothing is written"
        pgd_step(**(tensors | {other: overlapping}), step=0.02, norm=norm)


def test_views_that_interleave_or_touch_without_sharing_are_stepped_in_place(device):
    pair, grad = torch.rand(4, 6, 5, 5, device=device), torch.randn(4, 3, 5, 5, device=device)
    line = torch.rand(24, 2, 25, device=device)
    flat = torch.rand(200, device=device)
    for x_adv, x in (pair.chunk(2, dim=1), (pair[:, 3:], pair[:, :3]), pair.chunk(2, 1)[::-1], line.unbind(1)):
        expected = pgd_step(x_adv, grad.view(x_adv.shape) if x_adv.ndim == 4 else x, x, eps=0.1, step=0.02)
        given_ = grad.view(x_adv.shape) if x_adv.ndim == 4 else x
        assert torch.equal(pgd_step(x_adv, given_, x, eps=0.1, step=0.02, inplace=True), expected)
    pgd_step(flat[:100], flat[100:], flat[100:], eps=0.1, step=0.02, inplace=True)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_x_adv_may_be_x_or_the_gradient_itself(device, norm):
    x_adv, grad, x = make_inputs((6, 3, 20, 20), torch.float32, 9, device)
    for roles in ({"x": x_adv}, {"grad": x_adv}, {"x": x_adv, "grad": x_adv}):
        given_ = {"grad": grad, "x": x, **roles}
        expected = pgd_step(x_adv.clone(), **{n: t.clone() for n, t in given_.items()}, eps=0.1, step=0.02, norm=norm)
        stepped = x_adv.clone()
        aliased = given_ | dict.fromkeys(roles, stepped)
        assert torch.equal(pgd_step(stepped, **aliased, eps=0.1, step=0.02, norm=norm, inplace=True), expected)


def test_a_view_whose_elements_overlap_is_no_target_of_an_in_place_step(device):
    windows = torch.rand(50, device=device).unfold(0, 10, 1)
    with pytest.raises(LtatError, match="overlapping view, so its elements share memory; clone"):
        pgd_step(windows, torch.ones(41, 10, device=device), windows.clone(), eps=0.1, step=0.02, inplace=True)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (3, 0, 4), (0,)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_an_empty_batch_is_no_crash(device, shape, norm):
    empty = torch.empty(shape, device=device)
    for inplace in (False, True):
        assert pgd_step(empty, empty, empty, eps=0.1, step=0.1, norm=norm, inplace=inplace).shape == shape


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_step_stays_in_the_ball_and_in_the_box(device, norm):
    x_adv, _, x = make_inputs((16, 3, 8, 8), torch.float32, 3, device)
    eps = 8 / 255
    for k in range(10):
        grad = torch.randn(x.shape, generator=torch.Generator().manual_seed(k)).to(device)
        x_adv = pgd_step(x_adv, grad, x, eps=eps, step=2 / 255, norm=norm)
        delta = (x_adv.double() - x.double()).flatten(1)
        size = delta.abs().max() if norm == "linf" else delta.norm(dim=1).max()
        assert size <= eps * (1 + 1e-6) + 2**-24, "outside the ball"
        assert x_adv.min() >= 0.0 and x_adv.max() <= 1.0, "outside the box"


def test_zero_gradient_does_not_move_and_nan_is_not_hidden(device):
    x = torch.full((2, 5), 0.5, device=device)
    grad = torch.tensor([[0.0, -0.0, math.nan, 1.0, -1.0], [0.0] * 5], device=device)
    linf = pgd_step(x, grad, x, eps=0.1, step=0.05)
    torch.testing.assert_close(linf[0, [0, 1, 3, 4]].cpu(), torch.tensor([0.5, 0.5, 0.55, 0.45]))
    assert linf[0, 2].isnan() and torch.equal(linf[1], x[1])
    l2 = pgd_step(x, grad, x, eps=0.1, step=0.05, norm="l2")
    assert l2[0].isnan().all() and torch.equal(l2[1], x[1])
    broken = x.clone()
    broken[0, 0] = math.nan
    assert pgd_step(x, torch.ones_like(x), broken, eps=0.1, step=0.05)[0, 0].isnan()


def test_a_tiny_l2_gradient_still_gives_a_full_step(device):
    # The squares of these entries are 0 in float32.
    x = torch.full((1, 4), 0.5, device=device)
    moved = pgd_step(x, torch.full_like(x, 1e-25), x, eps=1.0, step=0.2, norm="l2")
    torch.testing.assert_close(moved, x + 0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_gradient_does_not_round_the_step(device, dtype):
    x = torch.full((1, 8), 0.5, device=device)
    moved = pgd_step(x, torch.ones_like(x, dtype=dtype), x, eps=1.0, step=2 / 255)
    assert torch.equal(moved, x + torch.tensor(2 / 255, device=device))


def test_autograd_notices_an_in_place_step(device):
    weight = torch.ones(3, device=device, requires_grad=True)
    image = torch.rand(3, device=device)
    product = (weight * image).sum()  # keeps `image` for the backward pass
    pgd_step(image, torch.ones_like(image), image.clone(), eps=0.1, step=0.1, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_inference_tensors_which_have_no_version_are_stepped_in_place_too(device):
    with torch.inference_mode():
        x = torch.full((2, 3), 0.5, device=device)
        x_adv = x.clone()
        pgd_step(x_adv, torch.ones_like(x), x, eps=0.1, step=0.05, inplace=True)
    torch.testing.assert_close(x_adv, x + 0.05)


def test_the_result_carries_no_gradient(device):
    x_adv, grad, x = make_inputs((2, 3), torch.float32, 4, device)
    assert not pgd_step(x_adv.requires_grad_(), grad, x, eps=0.1, step=0.1).requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -0.1}, "eps is -0.1"),
        ({"eps": math.nan}, "eps is nan"),
        ({"step": math.nan}, "step is nan"),
        ({"eps": "a"}, "eps is 'a'; give a number >= 0"),
        ({"eps": None}, "eps is None; give a number >= 0"),
        ({"eps": 1j}, "eps is 1j; give a number >= 0"),
        ({"eps": True}, "eps is True; give a number >= 0"),
        ({"eps": [0.1, 0.1]}, "eps is a value of type list; give"),
        ({"eps": np.ones(2)}, "eps is a numpy array; give"),
        ({"eps": 10**5000}, "eps is too large for a float; give"),
        ({"eps": torch.tensor(0.1)}, r"eps is a torch.float32 tensor \(\) on cpu; give"),
        ({"eps": torch.ones(2).to_sparse()}, "eps is a tensor of layout torch.sparse_coo; convert"),
        ({"step": "a"}, "step is 'a'; give a number"),
        ({"norm": "l1"}, "unknown norm 'l1'"),
        ({"norm": None}, "unknown norm None"),
        ({"norm": ["linf"]}, r"unknown norm \['linf'\]"),
        ({"box": (0.0, 0.5, 1.0)}, r"the box is \(0.0, 0.5, 1.0\); give a pair"),
        ({"box": 5}, "the box is 5; give a pair"),
        ({"box": None}, "the box is None; give a pair"),
        ({"box": (math.nan, 1.0)}, "is empty"),
        ({"box": ("a", "b")}, "the lower bound of the box is 'a'; give a number"),
        ({"inplace": "no"}, "inplace is 'no'; give True or False"),
        ({"x_adv": [[1.0] * 3] * 2}, "x_adv is a value of type list; give a torch tensor"),
        ({"x": torch.ones(2, 3).to_sparse()}, "x is a tensor of layout torch.sparse_coo; convert it with to_dense"),
        ({"grad": torch.ones(2, 3, dtype=torch.complex64)}, "grad is torch.complex64; convert it"),
        ({"grad": torch.ones(2, 3, dtype=torch.bool)}, "grad is torch.bool; convert it"),
        ({"x_adv": None}, "x_adv is a value of type NoneType"),
        ({"box": (1.0, 0.0)}, "is empty"),
        ({"box": (-1e300, 1.0)}, r"the bound -1e\+300 of the box is no float32"),
        ({"box": (0.0, 1e300)}, r"the bound 1e\+300 of the box is no float32"),
        ({"eps": torch.ones(3)}, r"eps is a torch.float32 tensor \(3,\)"),
        ({"eps": torch.ones(2, dtype=torch.float64)}, "float64"),
        ({"eps": torch.tensor([0.1, -1.0])}, "eps of sample 1 is -1.0"),
        ({"step": torch.tensor([math.nan, 1.0])}, "step of sample 0 is nan"),
        ({"grad": torch.ones(2, 3).numpy()}, "grad is a numpy array; give a torch tensor"),
        ({"grad": torch.ones(2, 4)}, r"grad has shape \(2, 4\)"),
        ({"x": torch.ones(2, 3, dtype=torch.float64)}, "x is torch.float64"),
        ({"x_adv": torch.ones(2, 3, dtype=torch.bfloat16)}, "x_adv is torch.bfloat16"),
        ({"grad": torch.ones(2, 3, dtype=torch.int32)}, "grad is torch.int32"),
        ({"grad": torch.ones(2, 3, device="meta")}, "grad lies on meta"),
        ({"x_adv": torch.tensor(0.0)}, "batch dimension"),
        ({"x_adv": torch.tensor(0.0), "eps": torch.ones(2)}, "batch dimension"),
        ({"x_adv": torch.ones(2, 3).numpy(), "eps": torch.ones(2)}, "x_adv is a numpy array"),
        ({"x_adv": torch.ones(3, 3), "eps": torch.ones(2)}, r"x has shape \(2, 3\), x_adv \(3, 3\)"),
    ],
)
def test_wrong_use_is_one_clear_sentence(device, change, message):
    if device.type == "cuda":
        pytest.skip("the arguments lie on the CPU")
    tensors = {"x_adv": torch.ones(2, 3), "grad": torch.ones(2, 3), "x": torch.ones(2, 3)}
    arguments = tensors | {"eps": 0.1, "step": 0.1} | change
    with pytest.raises(LtatError, match=message):
        pgd_step(**arguments)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, int])
def test_numpy_numbers_and_integers_are_numbers(device, kind):
    x_adv, grad, x = make_inputs((3, 5), torch.float32, 10, device)
    got = pgd_step(x_adv, grad, x, eps=kind(1), step=kind(1), box=(kind(0), kind(1)))
    assert torch.equal(got, pgd_step(x_adv, grad, x, eps=1.0, step=1.0))


@pytest.mark.parametrize("eps", [math.inf, 1e300])
def test_an_infinite_radius_is_a_very_large_one(device, eps):
    pixels = [-math.inf, math.inf, math.nan, 0.5, 0.5, 0.5, 0.5]
    x = torch.tensor([pixels] * 60, device=device)  # long enough for the blocks of the kernel
    x_adv = torch.full_like(x, 0.5)
    grad = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, 0.0, math.nan], device=device).expand(60, 7).contiguous()
    large = torch.finfo(torch.float32).max
    expected = pgd_step(x_adv, grad, x, eps=large, step=0.1)
    each = torch.full((60,), math.inf, device=device)
    for radius in (eps, each):
        for step in (pgd_step, pgd_step_twin):
            got = step(x_adv, grad, x, eps=radius, step=0.1)
            torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    assert expected[0, 2].isnan() and expected[0, 6].isnan() and not expected[0, :2].isnan().any()


def test_a_bad_radius_on_a_gpu_poisons_its_sample_instead_of_hanging():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x = torch.full((2, 3), 0.5, device="cuda")
    got = pgd_step(x, x, x, eps=torch.tensor([0.1, -0.1], device="cuda"), step=0.05)
    assert got[0].isfinite().all() and got[1].isnan().all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_threads_and_repetition_do_not_change_a_bit(native_device, norm):
    x_adv, grad, x = make_inputs((32, 3, 32, 32), torch.bfloat16, 5, native_device)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(pgd_step(x_adv, grad, x, eps=0.03, step=0.01, norm=norm))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [3072, 16388])
def test_where_the_tensors_lie_does_not_change_a_bit(native_device, size, dtype, norm):
    tensors = make_inputs((3, size), dtype, 11, native_device)
    expected = pgd_step(*tensors, eps=0.07, step=0.03, norm=norm)
    for which in range(3):
        moved = [shifted(tensor) if i == which else tensor for i, tensor in enumerate(tensors)]
        assert moved[which].data_ptr() % 8
        assert torch.equal(pgd_step(*moved, eps=0.07, step=0.03, norm=norm), expected)


@pytest.mark.parametrize("size", [16384, 16385, 16388, 24577, 3 * 224 * 224])
@pytest.mark.parametrize("each", [False, True])
def test_a_large_image_takes_the_defined_l2_step_alone_and_among_others(native_device, size, each):
    values = make_inputs((3, size), torch.bfloat16, 12, native_device)
    eps = torch.tensor([0.0, 4.0, 400.0], device=native_device) if each else 4.0
    step = torch.tensor([1.0, -8.0, 2.0], device=native_device) if each else 8.0
    got = pgd_step(*values, eps=eps, step=step, norm="l2", box=(-1.0, 2.0))
    expected = reference(*values, eps=eps, step=step, norm="l2", box=(-1.0, 2.0))
    np.testing.assert_allclose(got.cpu(), expected, rtol=0, atol=3e-7)
    for i in range(3):
        radii = {"eps": eps[i : i + 1], "step": step[i : i + 1]} if each else {"eps": eps, "step": step}
        alone = pgd_step(*(t[i : i + 1] for t in values), **radii, norm="l2", box=(-1.0, 2.0))
        assert torch.equal(alone[0], got[i])
    in_place = values[0].clone()
    pgd_step(in_place, *values[1:], eps=eps, step=step, norm="l2", box=(-1.0, 2.0), inplace=True)
    assert torch.equal(in_place, got)


def test_a_nan_anywhere_in_a_large_image_shows_in_the_whole_of_it(native_device):
    x_adv, grad, x = make_inputs((2, 40000), torch.float32, 13, native_device)
    for place in (0, 20000, 39999):
        broken = grad.clone()
        broken[1, place] = math.nan
        got = pgd_step(x_adv, broken, x, eps=1.0, step=0.5, norm="l2")
        assert got[1].isnan().all() and not got[0].isnan().any()


@pytest.mark.parametrize("shape", [(70, 1), (70, 3), (9, 5), (5, 1027), (3, 4100)])
def test_samples_of_any_size_have_each_its_radius(device, shape):
    values = make_inputs(shape, torch.float32, 14, device)
    eps, step = (torch.linspace(low, 0.3, shape[0], device=device) for low in (0.0, -0.1))
    for amounts in ({"eps": eps, "step": step}, {"eps": eps, "step": 0.05}, {"eps": 0.05, "step": step}):
        assert torch.equal(pgd_step(*values, **amounts), pgd_step_twin(*values, **amounts))


@needs_cuda
def test_more_samples_than_a_grid_has_rows_have_each_its_radius():
    values = make_inputs((65535 + 2, 1), torch.float32, 15, "cuda")
    eps = torch.linspace(0.0, 0.1, 65535 + 2, device="cuda")
    assert torch.equal(pgd_step(*values, eps=eps, step=0.2), pgd_step_twin(*values, eps=eps, step=0.2))


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_operator_keeps_its_contract_with_torch(native_device, layout):
    x_adv, grad, x = make_inputs((2, 3, 4, 4), torch.float32, 6, native_device)
    view = LAYOUTS[layout](x_adv)
    eps = torch.rand(2, device=native_device)
    torch.library.opcheck(torch.ops.ltat.pgd_step.default, (view, grad, x, eps, None, 0.0, 0.1, False, 0.0, 1.0))
    torch.library.opcheck(torch.ops.ltat.pgd_step.default, (view, grad, x, None, eps, 0.1, 0.0, True, 0.0, 1.0))
    torch.library.opcheck(torch.ops.ltat.pgd_step_.default, (x_adv, grad, x, None, None, 0.1, 0.1, False, 0.0, 1.0))


@pytest.mark.parametrize("inplace", [False, True])
def test_torch_compile_sees_one_graph(native_device, inplace):
    x_adv, grad, x = make_inputs((2, 3, 4, 4), torch.float32, 7, native_device)
    compiled = torch.compile(
        lambda a, g: pgd_step(a, 2 * g, x, eps=0.1, step=0.05, inplace=inplace), backend="aot_eager", fullgraph=True
    )
    expected = pgd_step(x_adv, grad, x, eps=0.1, step=0.05)
    assert torch.equal(compiled(x_adv, grad), expected)
    assert torch.equal(x_adv, expected) == inplace
