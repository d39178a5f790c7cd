import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ltat.errors import LtatError
from ltat.ops import KD_FORMS, balanced_kd, balanced_kd_twin
from tests.ops.layouts import shifted

RELAXED = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
LOGITS = ("student_adv", "student_minus", "teacher_adv", "teacher_minus", "teacher_clean")


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def divergence(teacher, student, temperature):
    log_p, log_q = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum() / len(student)


def reference(logits, target, log_prior, *, form, temperature, reduction, on_biased):
    """(cls, kd) in float64 from the definition; `logits` maps names to float64 arrays."""
    student = logits["student_adv"]
    cls = -log_softmax(student + log_prior)[np.arange(len(target)), target].mean()
    direct = student + log_prior if on_biased else student
    kd = 0.0
    if "kl_adv" in form:
        kd += divergence(logits["teacher_adv"], direct, temperature)
    if "kl_clean" in form:
        kd += divergence(logits["teacher_clean"], direct, temperature)
    if "igdm" in form:
        teacher = logits["teacher_adv"] - logits["teacher_minus"]
        kd += divergence(teacher, student - logits["student_minus"], temperature)
    return cls, kd / student.shape[1] if reduction == "elementmean" else kd


def make_inputs(batch, classes, seed=0, device="cpu", *, dtypes=(torch.float32,) * 5, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (scale * torch.randn(batch, classes, generator=generator)).to(device, dtype)
        for name, dtype in zip(LOGITS, dtypes, strict=True)
    }
    tensors["target"] = torch.randint(classes, (batch,), generator=generator).to(device)
    tensors["log_prior"] = torch.linspace(8.0, 4.0, classes, device=device)
    return tensors


def as_float64(tensors):
    return {name: value.detach().cpu().double().numpy() for name, value in tensors.items()}


def with_gradients(tensors):
    student, minus = (tensors[name].detach().requires_grad_() for name in ("student_adv", "student_minus"))
    return tensors | {"student_adv": student, "student_minus": minus}, (student, minus)


def gradients(loss, leaves):
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(grads, leaves, strict=True)]


@RELAXED
@given(
    batch=st.integers(1, 9),
    classes=st.integers(1, 70),
    dtypes=st.tuples(*[DTYPES] * 5),
    form=st.sampled_from(KD_FORMS),
    temperature=st.sampled_from([1.0, 0.5, 4.0]),
    reduction=st.sampled_from(["batchmean", "elementmean"]),
    on_biased=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_form_shape_and_dtype_gives_the_defined_loss(
    device, *, batch, classes, dtypes, form, temperature, reduction, on_biased, strided, seed
):
    tensors = make_inputs(batch, classes, seed, device, dtypes=dtypes)
    if strided:
        tensors |= {name: tensors[name].t().contiguous().t() for name in LOGITS}
    settings_ = {"form": form, "temperature": temperature, "reduction": reduction, "on_biased": on_biased}
    tensors, leaves = with_gradients(tensors)
    got = balanced_kd(**tensors, cls_weight=0.7, kd_weight=1.5, **settings_)
    twin = balanced_kd_twin(**tensors, cls_weight=0.7, kd_weight=1.5, **settings_)
    arrays = as_float64(tensors)
    target, log_prior = arrays["target"].astype(int), arrays["log_prior"]
    cls, kd = reference(arrays, target, log_prior, **settings_)
    np.testing.assert_allclose(float(got.cls), cls, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(float(got.kd), kd, rtol=1e-5, atol=1e-5 * temperature**2)
    np.testing.assert_allclose(float(got.loss.detach()), 0.7 * cls + 1.5 * kd, rtol=1e-5, atol=1e-5 * temperature**2)
    for mine, theirs in zip(gradients(got.loss, leaves), gradients(twin.loss, leaves), strict=True):
        assert mine.dtype == theirs.dtype
        tolerance = {torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[mine.dtype]
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance * temperature / 2)


@pytest.mark.parametrize("form", KD_FORMS)
@pytest.mark.parametrize("on_biased", [False, True])
def test_gradient_is_the_slope_of_the_float64_loss(device, form, on_biased):
    tensors, leaves = with_gradients(make_inputs(3, 5, 11, device))
    got = balanced_kd(**tensors, form=form, kd_weight=0.5, temperature=2.0, on_biased=on_biased)
    arrays = as_float64(tensors)
    target, log_prior = arrays["target"].astype(int), arrays["log_prior"]

    def loss():
        cls, kd = reference(
            arrays, target, log_prior, form=form, temperature=2.0, reduction="batchmean", on_biased=on_biased
        )
        return cls + 0.5 * kd

    for name, grad in zip(("student_adv", "student_minus"), gradients(got.loss, leaves), strict=True):
        slope = np.zeros((3, 5))
        for index in np.ndindex(3, 5):
            middle = arrays[name][index]
            arrays[name][index] = middle + 1e-5
            above = loss()
            arrays[name][index] = middle - 1e-5
            slope[index] = (above - loss()) / 2e-5
            arrays[name][index] = middle
        np.testing.assert_allclose(grad.cpu(), slope, rtol=1e-5, atol=1e-6)


def test_equal_counts_are_plain_cross_entropy_and_a_constant_shift_changes_nothing(device):
    tensors, leaves = with_gradients(make_inputs(6, 10, 1, device))
    student, target = tensors["student_adv"], tensors["target"]
    flat = balanced_kd(student, target, torch.full((10,), math.log(500.0), device=device))
    plain = torch.nn.functional.cross_entropy(student, target)
    torch.testing.assert_close(flat.loss, plain, rtol=1e-6, atol=2e-6)
    prior = tensors["log_prior"]
    one, other = (balanced_kd(student, target, prior + shift) for shift in (0.0, 3.0))
    torch.testing.assert_close(one.loss, other.loss, rtol=2e-6, atol=2e-6)
    grad = gradients(one.loss, leaves)[0]
    assert grad.sum(dim=1).abs().max() < 1e-6, "a balanced softmax gradient sums to zero over the classes"


def test_identical_networks_have_no_difference_to_distil(device):
    tensors = make_inputs(6, 10, 2, device)
    tensors |= {"teacher_adv": tensors["student_adv"], "teacher_minus": tensors["student_minus"]}
    tensors, leaves = with_gradients(tensors)
    got = balanced_kd(**tensors, form="igdm", cls_weight=0.0)
    assert got.kd.abs() < 1e-6
    assert all(grad.abs().max() < 1e-6 for grad in gradients(got.loss, leaves))


def test_a_constant_logit_offset_of_either_network_is_invisible_to_igdm(device):
    tensors = make_inputs(6, 10, 3, device)
    plain = balanced_kd(**tensors, form="igdm").kd
    offset = torch.linspace(-2, 2, 10, device=device)
    for pair in (("student_adv", "student_minus"), ("teacher_adv", "teacher_minus")):
        moved = tensors | {name: tensors[name] + offset for name in pair}
        torch.testing.assert_close(balanced_kd(**moved, form="igdm").kd, plain, rtol=1e-5, atol=1e-5)


def test_a_linear_network_gives_igdm_its_jacobian_alone(device):
    generator = torch.Generator().manual_seed(4)
    weight, x, delta, bias = (torch.randn(size, generator=generator) for size in ((10, 7), (3, 7), (3, 7), (10,)))
    plus, minus = ((x + sign * delta) @ weight.T + bias for sign in (1, -1))
    target, prior = torch.zeros(3, dtype=torch.int64), torch.zeros(10)
    teacher = torch.randn(3, 10, generator=generator)
    got = balanced_kd(
        *(t.to(device) for t in (plus, target, prior)),
        form="igdm",
        student_minus=minus.to(device),
        teacher_adv=teacher.to(device),
        teacher_minus=torch.zeros_like(teacher).to(device),
    ).kd
    expected = divergence(teacher.double().numpy(), (2 * delta @ weight.T).double().numpy(), 1.0)
    np.testing.assert_allclose(float(got), expected, rtol=1e-5)


@pytest.mark.parametrize("form", KD_FORMS[1:])
def test_elementmean_is_batchmean_over_the_classes(device, form):
    tensors = make_inputs(6, 10, 5, device)
    batch, element = (balanced_kd(**tensors, form=form, reduction=r).kd for r in ("batchmean", "elementmean"))
    torch.testing.assert_close(element * 10, batch, rtol=1e-6, atol=1e-6)


def test_a_high_temperature_keeps_the_gradients_scale(device):
    # As T grows, T^2 KL tends to the variance of the logit difference over 2: finite, independent of T.
    tensors, leaves = with_gradients(make_inputs(6, 10, 6, device, scale=1.0))
    arrays = as_float64(tensors)
    gap = arrays["student_adv"] - arrays["teacher_adv"]
    got = balanced_kd(**tensors, form="kl_adv", temperature=100.0, cls_weight=0.0)
    np.testing.assert_allclose(float(got.kd), gap.var(axis=1).mean() / 2, rtol=0.05)
    slope = (gap - gap.mean(axis=1, keepdims=True)) / 10 / 6
    np.testing.assert_allclose(gradients(got.loss, leaves)[0].cpu(), slope, atol=1e-3)


@pytest.mark.parametrize("form", KD_FORMS[1:])
def test_a_teacher_probability_of_zero_has_a_finite_value_and_gradient(device, form):
    tensors = make_inputs(4, 6, 7, device)
    for name in ("teacher_adv", "teacher_clean"):
        tensors[name] = torch.tensor([200.0, 0, 0, 0, 0, -200.0], device=device).repeat(4, 1)
    tensors, leaves = with_gradients(tensors)
    got = balanced_kd(**tensors, form=form)
    twin = balanced_kd_twin(**tensors, form=form)
    assert got.loss.isfinite()
    torch.testing.assert_close(got.loss, twin.loss, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(gradients(got.loss, leaves), gradients(twin.loss, leaves), strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_a_class_the_teacher_excludes_contributes_nothing(device):
    tensors, leaves = with_gradients(make_inputs(4, 6, 8, device))
    tensors["teacher_adv"][:, 2] = -math.inf
    got = balanced_kd(**tensors, form="kl_adv")
    assert got.loss.isfinite() and gradients(got.loss, leaves)[0].isfinite().all()


def test_huge_logits_do_not_overflow_and_nan_is_not_hidden(device):
    tensors = make_inputs(4, 6, 9, device, scale=3e4)
    assert balanced_kd(**tensors, form="kl_adv+igdm").loss.isfinite()
    tensors["student_adv"][1, 1] = math.nan
    assert balanced_kd(**tensors).loss.isnan()


def test_a_scaled_half_precision_gradient_does_not_underflow(device):
    # Mixed precision multiplies the loss; a gradient stored in half precision before that would be 0.
    student = torch.tensor([[9.0, -9.0]], device=device, dtype=torch.float16, requires_grad=True)
    target, prior = torch.tensor([0], device=device), torch.zeros(2, device=device)
    loss = balanced_kd(student, target, prior, cls_weight=1e-2).loss
    (grad,) = torch.autograd.grad(loss * 65536, [student])
    expected = 1e-2 * 65536 / (1 + math.exp(18.0))
    np.testing.assert_allclose(float(grad[0, 1]), expected, rtol=2e-2)


def test_only_the_loss_carries_a_gradient_and_only_when_one_is_wanted(device):
    tensors, _ = with_gradients(make_inputs(4, 6, 10, device))
    got = balanced_kd(**tensors, form="igdm")
    assert got.loss.requires_grad and not got.cls.requires_grad and not got.kd.requires_grad
    with torch.no_grad():
        assert not balanced_kd(**tensors, form="igdm").loss.requires_grad
    assert all(part.dtype == torch.float32 and part.ndim == 0 for part in got)


def test_the_minus_branch_alone_can_be_trained(device):
    tensors = make_inputs(4, 6, 12, device)
    minus = tensors["student_minus"].requires_grad_()
    (grad,) = torch.autograd.grad(balanced_kd(**tensors, form="igdm").loss, [minus])
    (expected,) = torch.autograd.grad(balanced_kd_twin(**tensors, form="igdm").loss, [minus])
    torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-6)


def bad_calls():
    good = make_inputs(4, 6)
    wide = torch.randn(4, 7)
    return [
        ({"form": "kl"}, "unknown distillation form 'kl'"),
        ({"form": "igdm", "student_minus": None}, "needs student_minus"),
        ({"form": "kl_clean", "teacher_clean": None}, "needs teacher_clean"),
        ({"form": "kl_adv", "teacher_adv": wide}, r"teacher_adv has shape \(4, 7\)"),
        ({"form": "kl_adv", "teacher_adv": good["teacher_adv"].double()}, "teacher_adv is torch.float64"),
        ({"form": "kl_adv", "teacher_adv": good["teacher_adv"].clone().requires_grad_()}, "detach"),
        ({"form": "kl_adv", "teacher_adv": good["teacher_adv"].to("meta")}, "lies on meta"),
        ({"target": torch.tensor([0, 1, 2, 6])}, r"target 6 is outside 0\.\.5"),
        ({"target": torch.tensor([0, 1, 2, -1])}, r"target -1 is outside"),
        ({"target": good["target"].int()}, "target is torch.int32"),
        ({"target": torch.zeros(3, dtype=torch.int64)}, r"target has shape \(3,\)"),
        ({"log_prior": torch.zeros(7)}, r"log_prior has shape \(7,\)"),
        ({"log_prior": torch.zeros(6, dtype=torch.float64)}, "log_prior is torch.float64"),
        ({"log_prior": torch.zeros(6, requires_grad=True)}, "log_prior requires a gradient"),
        ({"form": "kl_adv", "teacher_adv": good["teacher_adv"].numpy()}, "teacher_adv is a numpy array"),
        ({"student_adv": torch.randn(4, 6).numpy()}, "student_adv is a numpy array; give a torch tensor"),
        ({"student_adv": torch.randn(6)}, r"student_adv has shape \(6,\)"),
        ({"student_adv": torch.randn(0, 6)}, r"student_adv has shape \(0, 6\)"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"temperature": None}, "temperature is None; give a number > 0"),
        ({"temperature": "a"}, "temperature is 'a'; give a number > 0"),
        ({"temperature": torch.tensor(2.0)}, "temperature is a value of type Tensor; give a number > 0"),
        ({"cls_weight": "0.5"}, "cls_weight is '0.5'; give a number"),
        ({"kd_weight": 10**5000}, "kd_weight is too large for a float"),
        ({"reduction": "mean"}, "unknown reduction 'mean'"),
        ({"reduction": None}, "unknown reduction None"),
        ({"reduction": ["batchmean"]}, r"unknown reduction \['batchmean'\]"),
        ({"form": None}, "unknown distillation form None"),
        ({"form": ["kl_adv"]}, r"unknown distillation form \['kl_adv'\]"),
        ({"on_biased": "yes"}, "on_biased is 'yes'; give True or False"),
        ({"student_adv": [[0.0] * 6] * 4}, "student_adv is a value of type list; give a torch tensor"),
        ({"student_adv": torch.randn(4, 6).to_sparse()}, "student_adv is a tensor of layout torch.sparse_coo"),
        ({"student_adv": torch.tensor(0.0)}, r"student_adv has shape \(\)"),
        ({"student_adv": good["student_adv"].to(torch.complex64)}, "student_adv is torch.complex64"),
        ({"target": [0, 1, 2, 3]}, "target is a value of type list"),
        ({"target": None}, "target is a value of type NoneType"),
        ({"target": torch.ones(4, dtype=torch.bool)}, "target is torch.bool"),
        ({"log_prior": [0.0] * 6}, "log_prior is a value of type list"),
        ({"log_prior": torch.zeros(6, 1)}, r"log_prior has shape \(6, 1\)"),
        ({"log_prior": torch.tensor([0.0, 0, math.nan, 0, 0, 0])}, "log_prior of class 2 is nan; give tau"),
        ({"log_prior": torch.tensor([0.0, 0, 0, 0, math.inf, 0])}, "log_prior of class 4 is inf; give tau"),
    ]


@pytest.mark.parametrize(("change", "message"), bad_calls())
def test_wrong_use_is_one_clear_sentence(device, change, message):
    if device.type == "cuda":
        pytest.skip("the arguments lie on the CPU")
    with pytest.raises(LtatError, match=message):
        balanced_kd(**(make_inputs(4, 6) | change))


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, int])
def test_numpy_numbers_and_integers_are_numbers(device, kind):
    tensors = make_inputs(4, 6, device=device)
    options = {"cls_weight": kind(2), "kd_weight": kind(3), "temperature": kind(4), "on_biased": np.bool_(True)}
    expected = balanced_kd(**tensors, form="kl_adv", cls_weight=2.0, kd_weight=3.0, temperature=4.0, on_biased=True)
    assert torch.equal(balanced_kd(**tensors, form="kl_adv", **options).loss, expected.loss)


def test_a_class_without_images_has_a_log_prior_of_minus_infinity(device):
    tensors = make_inputs(4, 6, device=device)
    tensors["log_prior"][5], tensors["target"] = -math.inf, tensors["target"] % 5
    assert balanced_kd(**tensors).loss.isfinite()


def test_a_target_out_of_range_on_a_gpu_poisons_the_loss_and_not_the_context():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    tensors, leaves = with_gradients(make_inputs(4, 6, device="cuda"))
    tensors["target"][2] = 6
    got = balanced_kd(**tensors)
    grad = gradients(got.loss, leaves)[0]
    assert got.loss.isnan() and grad[2].isnan().all() and grad[0].isfinite().all()
    assert torch.ones(2, device="cuda").sum() == 2


def test_a_target_out_of_range_reaches_no_memory_even_without_pythons_check(native_device):
    tensors = make_inputs(4, 6)
    operands = [tensors["student_adv"], tensors["target"] + 6, tensors["log_prior"], None, None, None, None]
    if native_device.type == "cpu":
        with pytest.raises(RuntimeError, match=r"is outside 0\.\.5"):
            torch.ops.ltat.balanced_kd(*operands, 1.0, 1.0, 1.0, False, False, True)


def test_a_second_derivative_is_refused_instead_of_silently_wrong(native_device):
    tensors, (student, _) = with_gradients(make_inputs(4, 6, device=native_device))
    loss = balanced_kd(**tensors, form="kl_adv").loss
    (grad,) = torch.autograd.grad(loss, [student], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad((grad * grad).sum() + (student * student).sum(), [student])


def test_a_backward_pass_leaves_the_gradient_of_the_next_one_alone(native_device):
    tensors, leaves = with_gradients(make_inputs(4, 6, 17, native_device))
    loss = balanced_kd(**tensors, form="igdm").loss
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    doubled = torch.autograd.grad(loss, leaves, torch.full_like(loss, 2.0), retain_graph=True)
    for _ in range(2):
        loss.backward(retain_graph=True)
    for once, twice, leaf in zip(first, doubled, leaves, strict=True):
        assert torch.equal(2 * once, twice) and torch.equal(2 * once, leaf.grad)


def test_writing_into_a_gradient_is_noticed_by_the_next_backward_pass():
    tensors, leaves = with_gradients(make_inputs(4, 6, 17))
    loss = balanced_kd(**tensors, form="igdm").loss
    expected = [grad.clone() for grad in torch.autograd.grad(loss, leaves, retain_graph=True)]
    for grad in torch.autograd.grad(loss, leaves, retain_graph=True):
        grad.zero_()
    try:
        again = torch.autograd.grad(loss, leaves)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


@pytest.mark.parametrize("classes", [1, 10, 16, 17, 64, 65])
@pytest.mark.parametrize("batch", [1, 15, 16, 17, 33])
def test_a_row_is_the_same_alone_and_among_any_number_of_others(native_device, batch, classes):
    tensors, leaves = with_gradients(make_inputs(batch, classes, 18, native_device))
    got = balanced_kd(**tensors, form="kl_adv+igdm")
    together = gradients(got.loss, leaves)
    losses = []
    for row in range(batch):
        alone = {name: tensor if name == "log_prior" else tensor[row : row + 1] for name, tensor in tensors.items()}
        alone, own = with_gradients(alone)
        one = balanced_kd(**alone, form="kl_adv+igdm")
        losses.append(one.loss.detach())
        for grad, whole in zip(gradients(one.loss, own), together, strict=True):
            torch.testing.assert_close(whole[row : row + 1] * batch, grad, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(got.loss.detach(), torch.stack(losses).mean(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("classes", [16, 17, 64, 65])
def test_either_side_of_a_whole_vector_agrees_with_float64(device, classes):
    tensors, leaves = with_gradients(make_inputs(20, classes, 19, device))
    got = balanced_kd(**tensors, form="kl_adv+igdm")
    arrays = as_float64(tensors)
    cls, kd = reference(
        arrays,
        arrays["target"].astype(int),
        arrays["log_prior"],
        form="kl_adv+igdm",
        temperature=1.0,
        reduction="batchmean",
        on_biased=False,
    )
    np.testing.assert_allclose([float(got.cls), float(got.kd)], [cls, kd], rtol=2e-6)
    twin = balanced_kd_twin(**tensors, form="kl_adv+igdm")
    for mine, theirs in zip(gradients(got.loss, leaves), gradients(twin.loss, leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_gradient_work_is_skipped_when_nobody_asks(native_device):
    tensors = make_inputs(4, 6, device=native_device)
    operands = [tensors[name] for name in ("student_adv", "target", "log_prior")]
    *_, grads = torch.ops.ltat.balanced_kd(*operands, None, None, None, None, 1.0, 1.0, 1.0, False, False, False)
    assert grads.numel() == 0


@pytest.mark.parametrize("classes", [10, 1000, 3000])
def test_threads_and_repetition_do_not_change_a_bit(native_device, classes):
    tensors, leaves = with_gradients(make_inputs(128, classes, 13, native_device))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            got = balanced_kd(**tensors, form="kl_adv+igdm")
            results.append((*(part.detach() for part in got), *gradients(got.loss, leaves)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("classes", [255, 256, 257, 1000, 1024, 1025, 1032, 3000])
def test_many_classes_agree_with_the_twin(native_device, classes):
    tensors, leaves = with_gradients(make_inputs(5, classes, 14, native_device))
    got, twin = (f(**tensors, form="kl_adv+igdm") for f in (balanced_kd, balanced_kd_twin))
    torch.testing.assert_close(got.loss, twin.loss, rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(gradients(got.loss, leaves), gradients(twin.loss, leaves), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("classes", [10, 256, 1000, 1032])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_the_tensors_lie_does_not_change_a_bit(native_device, dtype, classes):
    tensors, leaves = with_gradients(make_inputs(9, classes, 20, native_device, dtypes=(dtype,) * 5))
    moved, moved_leaves = with_gradients({name: shifted(tensor) for name, tensor in tensors.items()})
    assert moved["student_adv"].data_ptr() % 16
    one, other = (balanced_kd(**given_, form="kl_adv+igdm") for given_ in (tensors, moved))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    for a, b in zip(gradients(one.loss, leaves), gradients(other.loss, moved_leaves), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("batch", "classes"), [(1, 3), (7, 3), (8, 3), (9, 3), (65, 3), (300, 3), (1, 1032), (9, 1032)]
)
def test_one_loss_comes_of_any_number_of_blocks(native_device, batch, classes):
    # Again and again: what the last block of a launch leaves behind is what the next one finds.
    tensors = make_inputs(batch, classes, 21, native_device)
    expected = balanced_kd_twin(**tensors, form="kl_adv+igdm", temperature=2.0)
    losses = [balanced_kd(**tensors, form="kl_adv+igdm", temperature=2.0) for _ in range(3)]
    torch.testing.assert_close(losses[0], expected, rtol=1e-5, atol=1e-5)
    for other in losses[1:]:
        assert all(torch.equal(a, b) for a, b in zip(losses[0], other, strict=True))


class Computed(TorchDispatchMode):
    """Notes the operators that compute. To allocate or view launches nothing; a value is read on the CPU alone."""

    FREE = ("aten::empty", "aten::unbind", "aten::detach", "aten::view", "aten::alias", "aten::_local_scalar_dense")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func._schema.name.startswith(self.FREE):
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", KD_FORMS)
def test_forward_and_backward_are_the_operator_and_one_multiplication(native_device, form, dtype):
    tensors, leaves = with_gradients(make_inputs(4, 6, 22, native_device, dtypes=(dtype,) * 5))
    two = torch.tensor(2.0, device=native_device)
    with Computed() as calls:
        loss = balanced_kd(**tensors, form=form).loss
        torch.autograd.grad(loss, leaves, two, allow_unused=True)
    assert calls.names == ["ltat::balanced_kd", "aten::mul"]


def test_forward_and_backward_launch_three_kernels():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    tensors, leaves = with_gradients(make_inputs(128, 10, 22, "cuda", dtypes=(torch.bfloat16,) * 5))

    def step():
        torch.autograd.grad(balanced_kd(**tensors, form="igdm").loss, leaves)

    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    kernels = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) <= 3, kernels  # the loss, the one that autograd starts from, the multiplication


def test_gradients_of_different_types_have_each_its_own(native_device):
    dtypes = (torch.bfloat16, torch.float32, *[torch.float16] * 3)
    tensors, leaves = with_gradients(make_inputs(4, 6, 23, native_device, dtypes=dtypes))
    got, twin = (f(**tensors, form="igdm").loss for f in (balanced_kd, balanced_kd_twin))
    for mine, theirs in zip(gradients(3 * got, leaves), gradients(3 * twin, leaves), strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("differences", [False, True])
@pytest.mark.parametrize("want_grad", [False, True])
def test_operator_keeps_its_contract_with_torch(native_device, differences, want_grad):
    tensors = make_inputs(4, 6, 15, native_device)
    if want_grad:
        tensors, _ = with_gradients(tensors)
    names = ("student_adv", "target", "log_prior", "teacher_clean")
    extra = ("student_minus", "teacher_adv", "teacher_minus")
    operands = [tensors[n] for n in names] + [tensors[n] if differences else None for n in extra]
    torch.library.opcheck(torch.ops.ltat.balanced_kd.default, (*operands, 1.0, 0.5, 2.0, False, True, want_grad))


def test_torch_compile_sees_one_graph(native_device):
    tensors, leaves = with_gradients(make_inputs(4, 6, 16, native_device))
    compiled = torch.compile(lambda t: balanced_kd(**t, form="kl_adv+igdm"), backend="aot_eager", fullgraph=True)
    got, expected = compiled(tensors), balanced_kd(**tensors, form="kl_adv+igdm")
    assert torch.equal(got.loss, expected.loss)
    for mine, theirs in zip(gradients(got.loss, leaves), gradients(expected.loss, leaves), strict=True):
        assert torch.equal(mine, theirs)


def test_a_loss_far_smaller_than_the_logits_is_not_rounded_away(native_device):
    logits = torch.tensor([[1000.0, 990.0]], device=native_device)
    target, prior = torch.zeros(1, dtype=torch.long, device=native_device), torch.zeros(2, device=native_device)
    expected = math.log1p(math.exp(-10))
    assert balanced_kd(logits, target, prior).loss.item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 5.0, 30.0, 300.0])
def test_the_squared_temperature_does_not_enlarge_rounding(native_device, temperature):
    # The parts p * (log p - log q) are of first order in log p - log q, their sum is of second: formed from them, the
    # divergence at T = 30 is wrong by up to a hundredth of itself.
    rng = np.random.default_rng(0)
    for seed in range(150):
        classes, scale = int(rng.choice([3, 10, 64, 65, 100])), float(rng.choice([0.3, 1.0, 3.0, 10.0]))
        form, reduction = str(rng.choice(KD_FORMS[1:])), str(rng.choice(["batchmean", "elementmean"]))
        tensors = make_inputs(int(rng.integers(1, 9)), classes, seed, native_device, scale=scale)
        options = {"form": form, "temperature": temperature, "reduction": reduction, "on_biased": seed % 2 == 0}
        arrays = as_float64(tensors)
        _, kd = reference(arrays, arrays["target"].astype(int), arrays["log_prior"], **options)
        np.testing.assert_allclose(float(balanced_kd(**tensors, **options).kd), kd, rtol=2e-6, err_msg=str(options))
