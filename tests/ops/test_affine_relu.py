import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ltat.errors import LtatError
from ltat.ops import affine_relu, affine_relu_twin
from tests.ops.layouts import LAYOUTS
from tests.ops.test_relu_grad_add import DTYPES, RELAXED, ROUNDING, SHAPES, SPECIAL, same


def make_inputs(shape, dtype, seed, device="cpu") -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    scale, shift = torch.randn(2, shape[1], generator=generator)
    return x.to(device, dtype), scale.to(device), shift.to(device)


@RELAXED
@given(shape=SHAPES, dtype=DTYPES, layout=st.sampled_from(sorted(LAYOUTS)), seed=st.integers(0, 2**16))
def test_any_shape_layout_and_dtype_gives_the_defined_relu(device, *, shape, dtype, layout, seed):
    x, scale, shift = make_inputs(shape, dtype, seed, device)
    x = LAYOUTS[layout](x)
    got = affine_relu(x, scale, shift)
    assert got.shape == x.shape and got.dtype == dtype and got.stride() == torch.empty_like(x).stride()
    along = (-1, *[1] * (x.ndim - 2))
    a, b = (values.cpu().double().numpy().reshape(along) for values in (scale, shift))
    product = x.cpu().double().numpy() * a
    wanted = np.maximum(product + b, 0.0)
    error = np.abs(got.cpu().double().numpy() - wanted)
    # The smallest subnormal of float16 is 2^-24.
    assert (error <= ROUNDING[dtype] * wanted + 2**-22 * (np.abs(product) + np.abs(b)) + 2**-25).all()
    assert same(got, affine_relu_twin(x, scale, shift))


def test_it_is_a_batch_norm_in_evaluation_mode_and_its_relu(device):
    norm = torch.nn.BatchNorm2d(24, device=device).eval()
    with torch.no_grad():
        for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            values.uniform_(0.5, 2.0)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    x = torch.randn(4, 24, 7, 5, device=device).to(memory_format=torch.channels_last)
    got = affine_relu(x, scale, norm.bias - norm.running_mean * scale)
    assert not got.requires_grad
    torch.testing.assert_close(got, norm(x).relu().detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_infinity_and_zero_are_treated_as_in_torch(device, dtype, layout):
    values = torch.tensor(SPECIAL, device=device)
    x = values.to(dtype).view(1, 1, -1, 1).expand(4, len(SPECIAL), len(SPECIAL), 5)
    for shift in (torch.zeros_like(values), torch.ones_like(values), values.flip(0)):
        given_ = LAYOUTS[layout](x)
        got = affine_relu(given_, values, shift)
        assert same(got, affine_relu_twin(given_, values, shift))
    assert affine_relu(x, torch.ones_like(values), torch.zeros_like(values))[0, 0, 0].isnan().all()


def test_the_result_is_rounded_once(device):
    # Rounded to bfloat16 after the product, 1 + 2^-8 would be 1, and the sum 1 + 2^-7.
    x = torch.ones(2, 40, 3, device=device, dtype=torch.bfloat16)
    scale, shift = torch.full((40,), 1 + 2**-8, device=device), torch.full((40,), 1.25 * 2**-7, device=device)
    assert affine_relu(x, scale, shift).eq(1 + 2**-6).all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (3, 0, 4, 4), (2, 3, 0), (0, 0)])
def test_an_empty_batch_is_no_crash(device, shape):
    assert affine_relu(*make_inputs(shape, torch.bfloat16, 0, device)).shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("apart", [0, 1, 2])
def test_a_view_that_is_not_aligned_is_read_as_what_it_is(device, dtype, apart):
    inputs = list(make_inputs((4, 32, 5), dtype, 1, device))
    inputs[0] = LAYOUTS["transposed"](inputs[0])
    wanted = affine_relu(*inputs)
    for offset in (1, 2, 4):
        moved, values = list(inputs), inputs[apart]
        memory = torch.zeros(values.numel() + offset, device=device, dtype=values.dtype)
        moved[apart] = memory.as_strided(values.shape, values.stride(), offset).copy_(values)
        assert torch.equal(affine_relu(*moved), wanted)


X, EACH = torch.ones(2, 3, 4), torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, EACH, EACH), "x is a value of type NoneType; give a torch tensor"),
        ((X.to_sparse(), EACH, EACH), "x is a tensor of layout torch.sparse_coo; convert it with to_dense"),
        ((X.double(), EACH, EACH), "x is torch.float64; convert it to float32 or bfloat16 or float16"),
        ((EACH, EACH, EACH), r"x has shape \(3,\), which has no channels; give a tensor \[B, ch, ...\]"),
        ((X, 1.0, EACH), "scale is a value of type float; give a torch tensor"),
        ((X, EACH, EACH.numpy()), "shift is a numpy array; give a torch tensor"),
        ((X, torch.ones(4), EACH), r"scale is a torch.float32 tensor \(4,\) on cpu; give float32 \[3\] on cpu"),
        ((X, EACH, EACH.half()), r"shift is a torch.float16 tensor \(3,\) on cpu; give float32 \[3\] on cpu"),
        ((X, EACH, EACH.to("meta")), r"shift is a torch.float32 tensor \(3,\) on meta; give float32 \[3\] on cpu"),
    ],
)
def test_wrong_use_is_one_clear_sentence(device, arguments, message):
    if device.type == "cuda":
        pytest.skip("the arguments lie on the CPU")
    with pytest.raises(LtatError, match=message):
        affine_relu(*arguments)


def test_threads_and_repetition_do_not_change_a_bit(native_device):
    x, scale, shift = make_inputs((16, 24, 33, 17), torch.bfloat16, 2, native_device)
    x = LAYOUTS["channels_last"](x)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(affine_relu(x, scale, shift))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(affine_relu_twin(x, scale, shift), each) for each in results)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_operator_keeps_its_contract_with_torch(native_device, layout):
    x, scale, shift = make_inputs((2, 3, 4, 4), torch.float32, 3, native_device)
    torch.library.opcheck(torch.ops.ltat.affine_relu.default, (LAYOUTS[layout](x), scale, shift))


def test_torch_compile_sees_one_graph(native_device):
    x, scale, shift = make_inputs((2, 3, 4, 4), torch.bfloat16, 4, native_device)
    compiled = torch.compile(lambda x: affine_relu(2 * x, scale, shift) + 1, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), affine_relu(2 * x, scale, shift) + 1)
