import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ltat.errors import LtatError
from ltat.ops import gather_augment, gather_augment_twin

RELAXED = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMPY_MODES = {"zero": "constant", "reflect": "reflect"}
EXTREMES = [torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max]


def reference(images, positions, shift, mirrored, pad_mode):
    """Pad, cut, turn and divide every image by itself, as a textbook has it; NumPy alone."""
    height, width = images.shape[1:3]
    pad = height, width
    if pad_mode == "reflect":
        pad = height - 1, width - 1
    batch = []
    for position, (down, right), turned in zip(positions, shift, mirrored, strict=True):
        wide = np.pad(images[position], ((pad[0],) * 2, (pad[1],) * 2, (0, 0)), mode=NUMPY_MODES[pad_mode])
        top, left = pad[0] + np.clip(down, -pad[0], pad[0]), pad[1] + np.clip(right, -pad[1], pad[1])
        cut = wide[top : top + height, left : left + width]
        batch.append(cut[:, ::-1] if turned else cut)
    stacked = np.array(batch, dtype=np.uint8).reshape(-1, *images.shape[1:])
    return (stacked.astype(np.float32) / np.float32(255)).transpose(0, 3, 1, 2)


def make_inputs(n=7, height=6, width=5, channels=3, batch=4, seed=0, device="cpu", pad_mode="zero"):
    """Images without a black pixel, so that padding cannot be taken for one, and one draw of each kind."""
    rng = np.random.default_rng(seed)
    reach = (2 * height, 2 * width) if pad_mode == "zero" else (height - 1, width - 1)
    images = rng.integers(1, 256, (n, height, width, channels), dtype=np.uint8)
    shift = np.stack([rng.integers(-most, most + 1, batch) for most in reach], axis=1)
    drawn = images, rng.integers(0, n, batch), shift, rng.random(batch) < 0.5
    return tuple(torch.from_numpy(array).to(device) for array in drawn)


@RELAXED
@given(
    sizes=st.tuples(*[st.integers(1, 9)] * 3, st.integers(1, 20), st.integers(0, 9)),
    seed=st.integers(0, 2**16),
    left_out=st.sets(st.sampled_from(["positions", "shift", "mirrored"])),
    pad_mode=st.sampled_from(["zero", "reflect"]),
)
def test_any_shape_shift_and_mirror_gives_the_padded_cut_and_turned_images(device, *, sizes, seed, left_out, pad_mode):
    images, positions, shift, mirrored = make_inputs(*sizes, seed, device, pad_mode)
    if "positions" in left_out:
        n = len(images)
        positions, shift, mirrored = torch.arange(n), *make_inputs(*sizes[:4], n, seed, device, pad_mode)[2:]
    shift = torch.zeros_like(shift) if "shift" in left_out else shift
    mirrored = torch.zeros_like(mirrored) if "mirrored" in left_out else mirrored
    drawn = {"positions": positions, "shift": shift, "mirrored": mirrored}
    given_ = {name: None if name in left_out else tensor for name, tensor in drawn.items()}
    got = gather_augment(images, **given_, pad_mode=pad_mode)
    expected = reference(*(t.cpu().numpy() for t in (images, positions, shift, mirrored)), pad_mode)
    np.testing.assert_array_equal(got.cpu().numpy(), expected)
    assert got.dtype == torch.float32 and got.device.type == images.device.type
    assert got.is_contiguous(memory_format=torch.channels_last)
    channels_last = torch.empty(got.shape, memory_format=torch.channels_last)
    assert len(got) == 0 or got.stride() == channels_last.stride()
    assert torch.equal(got, gather_augment_twin(images, **given_, pad_mode=pad_mode))


def test_every_byte_is_divided_and_rounded_once(device):
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    exact = np.arange(256, dtype=np.float32) / np.float32(255)
    for shift in (None, torch.zeros(1, 2, dtype=torch.int64, device=device)):
        got = gather_augment(values.to(device), shift=shift)
        np.testing.assert_array_equal(got.flatten().cpu(), exact)


@pytest.mark.parametrize("pad_mode", ["zero", "reflect"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("width", [13, 14, 15, 16])
def test_bfloat16_is_float32_rounded_once_and_in_the_same_layout(device, width, channels, pad_mode):
    images, positions, shift, mirrored = make_inputs(9, 18, width, channels, 8, 2, device, pad_mode)
    images.view(-1)[:256] = torch.arange(256, dtype=torch.uint8)
    for moves in ({}, {"shift": shift, "mirrored": mirrored}):
        wide = gather_augment(images, positions, pad_mode=pad_mode, **moves)
        got = gather_augment(images, positions, pad_mode=pad_mode, dtype=torch.bfloat16, **moves)
        assert torch.equal(got, wide.bfloat16()) and got.stride() == wide.stride()
        twin = gather_augment_twin(images, positions, pad_mode=pad_mode, dtype=torch.bfloat16, **moves)
        assert torch.equal(got, twin) and got.stride() == twin.stride()
    assert gather_augment(images[:0], dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_bfloat16_image_out_of_range_is_nan_too():
    images, positions, _, _ = make_inputs()
    positions[2] = 7
    assert_only_nan(gather_augment_twin(images, positions, dtype=torch.bfloat16), 2)


@pytest.mark.parametrize("pad_mode", ["zero", "reflect"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_many_rows_and_long_rows_are_whole(device, channels, pad_mode):
    for height, width in ((200, 37), (3, 9000)):
        inputs = make_inputs(3, height, width, channels, 4, 1, device, pad_mode)
        got = gather_augment(inputs[0], inputs[1], shift=inputs[2] % 3, mirrored=inputs[3], pad_mode=pad_mode)
        images, positions, shift, mirrored = (t.cpu().numpy() for t in inputs)
        np.testing.assert_array_equal(got.cpu(), reference(images, positions, shift % 3, mirrored, pad_mode))


def test_zero_padding_takes_a_shift_however_wild(device):
    images, positions, _, mirrored = make_inputs(device=device)
    for wild in (*EXTREMES, 6, -6, 2**32, -(2**32)):
        shift = torch.tensor([[wild, 0], [0, wild], [wild, wild], [0, 0]], device=device)
        got = gather_augment(images, positions, shift=shift, mirrored=mirrored)
        assert not got[:3].any(), "outside the image all is black"
        assert torch.equal(got[3], gather_augment(images, positions[3:], mirrored=mirrored[3:])[0])


@pytest.mark.parametrize("wild", [*EXTREMES, 5, -5])
def test_a_reflection_beyond_the_far_side_is_refused_by_its_value(device, wild):
    images, positions, shift, _ = make_inputs(device=device, pad_mode="reflect")
    for axis, size in ((0, 6), (1, 5)):
        moved = shift.clone()
        moved[2, axis] = wild if abs(wild) > size else size * (1 if wild > 0 else -1)
        if device.type == "cpu":
            with pytest.raises(LtatError, match=rf"{int(moved[2, axis])}.* of image 2 reflects beyond .* 6x5 pixels"):
                gather_augment(images, positions, shift=moved, pad_mode="reflect")
        else:
            assert_only_nan(gather_augment(images, positions, shift=moved, pad_mode="reflect"), 2)
        assert_only_nan(gather_augment_twin(images, positions, shift=moved, pad_mode="reflect"), 2)


@pytest.mark.parametrize("wild", [*EXTREMES, 7, -1, 2**40])
def test_a_position_outside_the_set_is_refused_by_its_value(device, wild):
    images, positions, shift, mirrored = make_inputs(device=device)
    positions[2] = wild
    for moves in ({}, {"shift": shift, "mirrored": mirrored}):
        if device.type == "cpu":
            with pytest.raises(LtatError, match=rf"position {wild} of image 2 is outside 0\.\.6; give"):
                gather_augment(images, positions, **moves)
        else:
            assert_only_nan(gather_augment(images, positions, **moves), 2)
        assert_only_nan(gather_augment_twin(images, positions, **moves), 2)


def assert_only_nan(batch, image):
    assert batch[image].isnan().all()
    assert torch.cat([batch[:image], batch[image + 1 :]]).isfinite().all(), "the neighbours are well"


def test_an_axis_of_one_pixel_reflects_nothing(device):
    images, positions, _, mirrored = make_inputs(height=1, width=1, device=device)
    still = torch.zeros(4, 2, dtype=torch.int64, device=device)
    got = gather_augment(images, positions, shift=still, mirrored=mirrored, pad_mode="reflect")
    assert torch.equal(got, gather_augment(images, positions))
    assert gather_augment_twin(images, positions, shift=still + 1, pad_mode="reflect").isnan().all()
    if device.type == "cpu":
        with pytest.raises(LtatError, match=r"keep rows within \+-0"):
            gather_augment(images, positions, shift=still + 1, pad_mode="reflect")


@pytest.mark.parametrize("sizes", [(0, 5, 3), (6, 0, 3), (6, 5, 0)])
@pytest.mark.parametrize("pad_mode", ["zero", "reflect"])
def test_pictures_without_pixels_are_no_crash(device, sizes, pad_mode):
    images = torch.zeros(7, *sizes, dtype=torch.uint8, device=device)
    positions = torch.tensor([6, 0], device=device)
    still, mirrored = (
        torch.zeros(2, 2, dtype=torch.int64, device=device),
        torch.ones(2, dtype=torch.bool, device=device),
    )
    for moves in ({}, {"mirrored": mirrored}, *([{"shift": still}] if pad_mode == "zero" else [])):
        assert gather_augment(images, positions, pad_mode=pad_mode, **moves).shape == (2, sizes[2], *sizes[:2])


def test_an_image_more_than_two_gigabytes_into_the_set_is_found(device):
    images = torch.empty(2**31 // 65536 + 9, 256, 256, 1, dtype=torch.uint8, device=device)  # untouched, so not held
    images[-1] = 51
    got = gather_augment(images, torch.tensor([len(images) - 1], device=device))
    assert torch.equal(got, torch.full((1, 1, 256, 256), 0.2, device=device))


def test_an_empty_batch_is_no_crash(device):
    images, positions, shift, mirrored = (t[:0] for t in make_inputs(device=device))
    full = make_inputs(device=device)[0]
    for pad_mode in ("zero", "reflect"):
        for source in (images, full):
            got = gather_augment(source, positions, shift=shift, mirrored=mirrored, pad_mode=pad_mode)
            assert got.shape == (0, 3, 6, 5) and got.dtype == torch.float32
    assert gather_augment(images).shape == (0, 3, 6, 5)
    with pytest.raises(LtatError, match="4 images are asked of an empty set"):
        gather_augment(images, make_inputs(device=device)[1])


def test_strided_draws_are_read_as_what_they_stand_for(device):
    images, positions, shift, mirrored = make_inputs(batch=12, device=device)
    got = gather_augment(images, positions[::3], shift=shift.t().contiguous().t()[::3], mirrored=mirrored[::3])
    whole = gather_augment(images, positions, shift=shift, mirrored=mirrored)
    assert torch.equal(got, whole[::3])


def test_inference_tensors_and_inference_mode_are_served(device):
    with torch.inference_mode():
        images, positions, shift, mirrored = make_inputs(device=device)
        got = gather_augment(images, positions, shift=shift, mirrored=mirrored)
    assert torch.equal(got, gather_augment(images.clone(), positions, shift=shift, mirrored=mirrored))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((7, 6, 5, 3), np.uint8)}, "images is a numpy array; give a torch tensor"),
        ({"images": torch.zeros(7, 6, 5, 3)}, r"images are torch.float32 of shape \(7, 6, 5, 3\)"),
        ({"images": torch.zeros(6, 5, 3, dtype=torch.uint8)}, "give contiguous uint8"),
        ({"images": torch.zeros(7, 5, 6, 3, dtype=torch.uint8).transpose(1, 2)}, "give contiguous uint8"),
        ({"dtype": torch.float16}, "images of torch.float16 cannot be given; choose torch.float32 or torch.bfloat16"),
        ({"dtype": "float32"}, "images of float32 cannot be given"),
        ({"dtype": None}, "images of None cannot be given"),
        ({"images": None}, "images is a value of type NoneType; give a torch tensor"),
        ({"images": [[0]]}, "images is a value of type list; give a torch tensor"),
        (
            {"images": torch.zeros(7, 6, 5, 3, dtype=torch.uint8).to_sparse()},
            "images is a tensor of layout torch.sparse",
        ),
        ({"images": torch.tensor(0, dtype=torch.uint8)}, r"images are torch.uint8 of shape \(\)"),
        ({"positions": [0, 1, 2, 3]}, "positions is a value of type list; give a torch tensor"),
        ({"positions": np.arange(4)}, "positions is a numpy array; give a torch tensor"),
        ({"positions": torch.tensor(0)}, r"positions is torch.int64 \(\) on cpu; give torch.int64 \(1,\)"),
        ({"positions": torch.ones(4, dtype=torch.bool)}, "positions is torch.bool"),
        ({"positions": torch.ones(4, dtype=torch.complex64)}, "positions is torch.complex64"),
        ({"shift": 4}, "shift is a value of type int; give a torch tensor"),
        ({"mirrored": True}, "mirrored is a value of type bool; give a torch tensor"),
        ({"pad_mode": None}, "unknown padding None; choose one of"),
        ({"pad_mode": ["zero"]}, r"unknown padding \['zero'\]; choose one of"),
        ({"pad_mode": "edge"}, "unknown padding 'edge'; choose one of zero, reflect"),
        ({"positions": torch.zeros(4, dtype=torch.int32)}, r"positions is torch.int32 \(4,\)"),
        ({"positions": torch.zeros(2, 2, dtype=torch.int64)}, r"positions is torch.int64 \(2, 2\)"),
        ({"positions": torch.zeros(4, dtype=torch.int64, device="meta")}, "positions is .* on meta"),
        ({"shift": torch.zeros(4, dtype=torch.int64)}, r"shift is torch.int64 \(4,\) on cpu; give .* \(4, 2\)"),
        ({"shift": torch.zeros(3, 2, dtype=torch.int64)}, r"shift is torch.int64 \(3, 2\)"),
        ({"mirrored": torch.zeros(4, dtype=torch.uint8)}, "mirrored is torch.uint8"),
    ],
)
def test_wrong_use_is_one_clear_sentence(device, change, message):
    if device.type == "cuda":
        pytest.skip("the arguments lie on the CPU")
    images, positions, shift, mirrored = make_inputs()
    arguments = {"images": images, "positions": positions, "shift": shift, "mirrored": mirrored} | change
    with pytest.raises(LtatError, match=message):
        gather_augment(**arguments)


def test_threads_and_repetition_do_not_change_a_bit(native_device):
    images, positions, shift, mirrored = make_inputs(40, 32, 32, 3, 128, 3, native_device)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            results.append(gather_augment(images, positions, shift=shift, mirrored=mirrored))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("reflect", [False, True])
def test_operator_keeps_its_contract_with_torch(native_device, reflect, channels):
    images, positions, shift, mirrored = make_inputs(
        channels=channels, device=native_device, pad_mode="reflect" if reflect else "zero"
    )
    for arguments in ((positions, shift, mirrored), (None, None, None), (positions[:0], shift[:0], None)):
        for bfloat16 in (False, True):
            operands = (images, *arguments, reflect, bfloat16)
            torch.library.opcheck(torch.ops.ltat.gather_augment.default, operands)


@pytest.mark.parametrize("pad_mode", ["zero", "reflect"])
def test_torch_compile_sees_one_graph(device, pad_mode):
    images, positions, shift, mirrored = make_inputs(device=device, pad_mode=pad_mode)
    compiled = torch.compile(
        lambda p, s, m: 2 * gather_augment(images, p, shift=s, mirrored=m, pad_mode=pad_mode),
        backend="aot_eager",
        fullgraph=True,
    )
    expected = 2 * gather_augment(images, positions, shift=shift, mirrored=mirrored, pad_mode=pad_mode)
    got = compiled(positions, shift, mirrored)
    assert torch.equal(got, expected) and got.stride() == expected.stride()
