import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltat.errors import LtatError
from ltat.ops import relu_grad_add, relu_grad_add_twin
from tests.ops.layouts import LAYOUTS

RELAXED = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Rows of channels shorter than a vector, as long as several blocks, and in between.
CHANNELS = st.one_of(st.integers(1, 9), st.sampled_from([16, 24, 64, 513, 1100]))
SHAPES = st.one_of(
    st.tuples(st.integers(1, 3), CHANNELS, st.integers(1, 5), st.integers(1, 9)),
    st.tuples(st.integers(1, 7), CHANNELS),
)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
ROUNDING = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}
SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, -1e-40, 3e38, 6e-8, 65504.0, 1.0, -1.0)


def make_inputs(shape, dtype, seed, device="cpu") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    named = {name: torch.randn(shape, generator=generator) for name in ("output", "grad", "other", "outside")}
    named["output"] = named["output"].relu()
    inputs = {name: values.to(device, dtype) for name, values in named.items()}
    return inputs | {"scale": torch.randn(shape[1], generator=generator).to(device)}


def reference(output, grad, other=None, *, scale=None, outside=None) -> tuple[np.ndarray, np.ndarray]:
    """The definition in float64, and the size of the terms that were added up, which bounds the rounding."""
    output, grad, *rest = (None if t is None else t.cpu().double().numpy() for t in (output, grad, other, outside))
    other, outside = (np.zeros_like(output) if each is None else each for each in rest)
    factor = 1.0 if scale is None else scale.cpu().double().numpy().reshape(-1, *[1] * (output.ndim - 2))
    mask = (output > 0) * factor
    return mask * (grad + other) + outside, np.abs(mask) * (np.abs(grad) + np.abs(other)) + np.abs(outside)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal bits, but for the kind of NaN and the sign of a zero."""
    return a.dtype == b.dtype and np.array_equal(a.cpu().float().numpy(), b.cpu().float().numpy(), equal_nan=True)


@RELAXED
@given(
    shape=SHAPES,
    dtype=DTYPES,
    layouts=st.tuples(*[st.sampled_from(sorted(LAYOUTS))] * 4),
    left_out=st.sets(st.sampled_from(["other", "scale", "outside"])),
    seed=st.integers(0, 2**16),
)
def test_any_shape_layout_and_dtype_gives_the_defined_gradient(device, *, shape, dtype, layouts, left_out, seed):
    inputs = make_inputs(shape, dtype, seed, device)
    for name, layout in zip(("output", "grad", "other", "outside"), layouts, strict=True):
        inputs[name] = LAYOUTS[layout](inputs[name])
    inputs = {name: tensor for name, tensor in inputs.items() if name not in left_out}
    got = relu_grad_add(**inputs)
    assert got.shape == inputs["output"].shape and got.dtype == dtype
    assert got.stride() == torch.empty_like(inputs["output"]).stride()
    wanted, size = reference(**inputs)
    error = np.abs(got.cpu().double().numpy() - wanted)
    # The smallest subnormal of float16 is 2^-24.
    assert (error <= ROUNDING[dtype] * np.abs(wanted) + 2**-22 * size + 2**-25).all()
    assert same(got, relu_grad_add_twin(**inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_two_readers_of_a_relu_give_the_bits_of_autograd(device, dtype):
    z, first, second = torch.randn(3, 4, 32, 5, 7, device=device).to(dtype).requires_grad_()
    output = z.relu()
    (wanted,) = torch.autograd.grad((output.clone(), output.clone()), [z], (first, second))
    assert same(relu_grad_add(output, first, second), wanted)
    (wanted,) = torch.autograd.grad(z.relu(), [z], first)
    assert same(relu_grad_add(output, first), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_infinity_and_zero_are_treated_as_autograd_treats_them(device, dtype, layout):
    values = torch.tensor(SPECIAL, device=device).to(dtype)
    grids = torch.meshgrid(values, values, values, indexing="ij")
    # Long enough for the blocks of the kernels, and in the last dimension for their remainders.
    output, first, second = (LAYOUTS[layout](grid.reshape(16, 12, 3, 3)) for grid in grids)
    wanted = torch.ops.aten.threshold_backward(first + second, output, 0)
    got = relu_grad_add(output, first, second)
    assert same(got, wanted)
    assert got[output.isnan() & ~first.isnan() & ~second.isnan()].isfinite().any(), "a NaN output passes the gradient"
    scale = torch.tensor([2.0, math.inf, math.nan, -1.0] * 3, device=device)
    options = {"scale": scale, "outside": second}
    assert same(relu_grad_add(output, first, **options), relu_grad_add_twin(output, first, **options))


def test_a_pre_activation_block_gives_the_gradient_of_autograd(device):
    x = torch.randn(6, 16, 8, 8, device=device).to(memory_format=torch.channels_last).requires_grad_()
    scale, shift = torch.randn(2, 16, device=device)
    output = (x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).relu()
    inner, skip = torch.randn_like(x), torch.randn_like(x)
    (wanted,) = torch.autograd.grad((output, x.clone()), [x], (inner, skip))
    torch.testing.assert_close(relu_grad_add(output, inner, scale=scale, outside=skip), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "place"), [(torch.bfloat16, 2.0**-7), (torch.float16, 2.0**-10)])
def test_the_result_is_rounded_once(device, dtype, place):
    # A sum that is rounded first loses its half of the last place, and the quarter behind it then changes nothing.
    one, half, quarter = (torch.full((2, 40), v, device=device, dtype=dtype) for v in (1.0, place / 2, place / 4))
    assert relu_grad_add(one, one, half, outside=quarter).eq(1 + place).all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (3, 0, 4, 4), (2, 3, 0), (0, 0)])
def test_an_empty_batch_is_no_crash(device, shape):
    assert relu_grad_add(**make_inputs(shape, torch.bfloat16, 0, device)).shape == shape


@pytest.mark.parametrize("shape", [(), (5,)])
def test_without_a_scale_no_channels_are_needed(device, shape):
    output, grad = torch.ones(shape, device=device), torch.full(shape, 3.0, device=device)
    assert relu_grad_add(output, grad, grad).eq(6).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("apart", ["output", "grad", "other", "outside", "scale"])
def test_a_view_that_is_not_aligned_is_read_as_what_it_is(device, dtype, apart):
    inputs = make_inputs((4, 32, 4, 4), dtype, 1, device)
    inputs = {name: LAYOUTS["channels_last"](values) for name, values in inputs.items()}
    wanted = relu_grad_add(**inputs)
    for offset in (1, 2, 4):
        memory = torch.zeros(inputs[apart].numel() + offset, device=device, dtype=inputs[apart].dtype)
        shape, strides = inputs[apart].shape, inputs[apart].stride()
        moved = memory.as_strided(shape, strides, offset).copy_(inputs[apart])
        assert torch.equal(relu_grad_add(**(inputs | {apart: moved})), wanted)


def test_expanded_gradients_are_read_as_what_they_stand_for(device):
    # The mean over an image gives such a gradient.
    inputs = make_inputs((4, 8, 3, 3), torch.float32, 2, device)
    flat = inputs["grad"][:, :, :1, :1].expand(4, 8, 3, 3)
    wanted = relu_grad_add(**(inputs | {"grad": flat.contiguous()}))
    assert torch.equal(relu_grad_add(**(inputs | {"grad": flat})), wanted)
    strided = torch.zeros(16, device=device)[::2].copy_(inputs["scale"])
    assert torch.equal(relu_grad_add(**(inputs | {"scale": strided})), relu_grad_add(**inputs))


def test_the_inputs_stay_as_they_are_and_the_result_carries_no_gradient(device):
    inputs = make_inputs((4, 8, 3, 3), torch.float32, 3, device)
    before = {name: values.clone() for name, values in inputs.items()}
    got = relu_grad_add(**{name: values.requires_grad_() for name, values in inputs.items()})
    assert not got.requires_grad
    assert all(torch.equal(inputs[name], before[name]) for name in before)


GOOD = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": None}, "output is a value of type NoneType; give a torch tensor"),
        ({"output": GOOD.numpy()}, "output is a numpy array; give a torch tensor"),
        ({"grad": GOOD.numpy()}, "grad is a numpy array; give a torch tensor"),
        ({"other": 1.0}, "other is a value of type float; give a torch tensor"),
        ({"outside": GOOD.to_sparse()}, "outside is a tensor of layout torch.sparse_coo; convert it with to_dense"),
        ({"output": GOOD.double()}, "output is torch.float64; convert it to float32 or bfloat16 or float16"),
        ({"output": GOOD.int()}, "output is torch.int32; convert it"),
        ({"grad": GOOD.bfloat16()}, "grad is torch.bfloat16, output torch.float32; convert them to one dtype"),
        ({"other": GOOD.double()}, "other is torch.float64, output torch.float32"),
        ({"outside": GOOD.half()}, "outside is torch.float16, output torch.float32"),
        ({"grad": torch.ones(2, 3)}, r"grad has shape \(2, 3\), output \(2, 3, 4\); give them one shape"),
        ({"other": torch.ones(2, 3, 1)}, r"other has shape \(2, 3, 1\), output"),
        ({"outside": torch.ones(1, 3, 4)}, r"outside has shape \(1, 3, 4\), output"),
        ({"grad": GOOD.to("meta")}, "grad lies on meta, output on cpu; move them to one device"),
        ({"scale": 2.0}, "scale is a value of type float; give a torch tensor"),
        ({"scale": torch.ones(4)}, r"scale is a torch.float32 tensor \(4,\) on cpu; give float32 \[3\] on cpu"),
        ({"scale": torch.ones(3, 1)}, r"scale is a torch.float32 tensor \(3, 1\) on cpu; give float32 \[3\] on cpu"),
        ({"scale": torch.ones(3, dtype=torch.bfloat16)}, r"scale is a torch.bfloat16 tensor \(3,\) on cpu; give"),
        ({"scale": torch.ones(3, device="meta")}, r"scale is a torch.float32 tensor \(3,\) on meta; give"),
        (
            {"output": torch.ones(3), "grad": torch.ones(3), "scale": torch.ones(3)},
            r"output has shape \(3,\), which has no channels; give a tensor \[B, ch, ...\]",
        ),
    ],
)
def test_wrong_use_is_one_clear_sentence(device, change, message):
    if device.type == "cuda":
        pytest.skip("the arguments lie on the CPU")
    with pytest.raises(LtatError, match=message):
        relu_grad_add(**({"output": GOOD, "grad": GOOD} | change))


def test_threads_and_repetition_do_not_change_a_bit(native_device):
    inputs = make_inputs((16, 24, 33, 17), torch.bfloat16, 4, native_device)
    inputs = {name: LAYOUTS["channels_last"](values) for name, values in inputs.items()}
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(relu_grad_add(**inputs))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(relu_grad_add_twin(**inputs), each) for each in results)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_operator_keeps_its_contract_with_torch(native_device, layout):
    inputs = make_inputs((2, 3, 4, 4), torch.float32, 5, native_device)
    inputs["output"] = LAYOUTS[layout](inputs["output"])
    operator = torch.ops.ltat.relu_grad_add.default
    arguments = [inputs[name] for name in ("output", "grad", "other", "scale", "outside")]
    torch.library.opcheck(operator, tuple(arguments))
    torch.library.opcheck(operator, (*arguments[:2], None, None, None))


def test_torch_compile_sees_one_graph(native_device):
    inputs = make_inputs((2, 3, 4, 4), torch.bfloat16, 6, native_device)
    scale, outside = inputs.pop("scale"), inputs.pop("outside")
    compiled = torch.compile(
        lambda o, g, other: relu_grad_add(o, 2 * g, other, scale=scale, outside=outside) + 1,
        backend="aot_eager",
        fullgraph=True,
    )
    wanted = relu_grad_add(inputs["output"], 2 * inputs["grad"], inputs["other"], scale=scale, outside=outside) + 1
    assert torch.equal(compiled(*inputs.values()), wanted)
