import importlib
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ltat import native
from ltat.errors import LtatError
from ltat.ops import affine_relu, balanced_kd, pgd_step, relu_grad_add
from tests.native.built import ROOT, built


@pytest.fixture
def fresh(monkeypatch):
    """`ltat.native` without what it remembers of earlier calls; restored afterwards."""
    monkeypatch.delenv("LTAT_NATIVE", raising=False)
    for remembered in (native.host, native._ops_problem):
        remembered.cache_clear()
    yield monkeypatch
    for remembered in (native.host, native._ops_problem):
        remembered.cache_clear()


@pytest.fixture
def host():
    if native.host() is None:
        pytest.skip("needs the native build")
    return native.host()


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs binutils, which come with a compiler")
def test_the_operators_bring_their_own_cuda_runtime_so_that_they_load_beside_a_cpu_build_of_torch(host):
    symbols = subprocess.run(["nm", "-D", "-u", native._OPS], capture_output=True, text=True, check=True).stdout.split()
    assert "aoti_torch_get_current_cuda_stream" in symbols or not native.status().cuda
    assert [name for name in symbols if name.startswith(("cuda", "__cuda"))] == []


class Recorder(TorchDispatchMode):
    """Notes the name of every operator that is called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_public_functions_really_reach_the_native_operators():
    # With LTAT_NATIVE=1 a missing build fails here (and at import) instead of being skipped.
    if "cpu" not in native.op_devices():
        pytest.skip("needs the native build")
    x, target = torch.rand(2, 3), torch.tensor([0, 2])
    with Recorder() as calls:
        pgd_step(x, x, x, eps=0.1, step=0.1)
        pgd_step(x.clone(), x, x, eps=0.1, step=0.1, inplace=True)
        balanced_kd(x, target, torch.zeros(3))
        relu_grad_add(x, x)
        affine_relu(x, x[0], x[1])
    reached = {"pgd_step", "pgd_step_", "balanced_kd", "relu_grad_add", "affine_relu"}
    assert {f"ltat::{name}" for name in reached} <= set(calls.names)


def test_a_required_but_missing_build_is_an_error_with_its_remedy(fresh, tmp_path):
    fresh.setattr(native, "_OPS", tmp_path / "_ops.so")
    assert native.op_devices() == frozenset()
    state = native.status()
    assert not state.ops and not state.cuda and "not built" in state.problem
    assert "--no-build-isolation" in state.remedy
    fresh.setenv("LTAT_NATIVE", "1")
    with pytest.raises(LtatError, match=r"LTAT_NATIVE=1, but .*not built"):
        native.op_devices()


def test_a_library_that_does_not_load_is_reported_once_and_replaced_by_the_twins(fresh, tmp_path):
    broken = tmp_path / "_ops.so"
    broken.write_bytes(b"no library")
    fresh.setattr(native, "_OPS", broken)
    with pytest.warns(UserWarning, match="does not load"):
        assert native.op_devices() == frozenset()
    assert native.op_devices() == frozenset()


def test_a_library_of_older_sources_is_reported_once_and_replaced_by_the_twins(fresh):
    if "cpu" not in native.op_devices():
        pytest.skip("needs the native build")
    native._ops_problem.cache_clear()
    fresh.setattr(native, "_OPERATORS", ("pgd_step", "step_of_tomorrow"))
    with pytest.warns(UserWarning, match="built from other sources than these: it has no step_of_tomorrow; .* Rebuild"):
        assert native.op_devices() == frozenset()
    assert native.op_devices() == frozenset()


def test_the_native_build_can_be_switched_off(fresh):
    fresh.setenv("LTAT_NATIVE", "0")
    assert native.host() is None
    assert native.op_devices() == frozenset()
    assert native.build_info() is None


def test_a_missing_host_module_is_an_error_only_when_required(fresh):
    fresh.setattr(importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    assert native.host() is None
    fresh.setenv("LTAT_NATIVE", "1")
    native.host.cache_clear()
    with pytest.raises(LtatError, match="_native is missing"):
        native.host()


def test_build_info_tells_what_a_bug_report_needs(host):
    info = native.build_info()
    assert {"operators", "compiler", "torch_headers", "isa", "cuda_archs"} <= set(info)
    assert info["isa"] in ("baseline", "x86-64-v3", "x86-64-v4")
    assert ("cuda" in info["operators"]) == (info["cuda_archs"] is not None)


@pytest.mark.parametrize(("ratio", "total"), [(10, 20431), (20, 17023), (50, 13996), (100, 12406)])
def test_counts_are_the_published_ones(host, ratio, total):
    counts = host.longtail_counts(5000, 10, ratio)
    assert counts.dtype == np.int64 and counts.sum() == total


@settings(deadline=None)
@given(
    n_max=st.integers(1, 10**5),
    classes=st.integers(2, 200),
    ratio=st.floats(1, 1000),
    kind=st.sampled_from(["exp", "step"]),
)
def test_native_counts_equal_the_python_formula(n_max, classes, ratio, kind):
    if native.host() is None:
        pytest.skip("needs the native build")
    head = (classes + 1) // 2
    exponents = [c / (classes - 1) if kind == "exp" else float(c >= head) for c in range(classes)]
    expected = [int(n_max * (1 / ratio) ** exponent) for exponent in exponents]
    assert native.host().longtail_counts(n_max, classes, ratio, kind).tolist() == expected


def test_one_class_keeps_everything(host):
    assert host.longtail_counts(7, 1, 10.0).tolist() == [7]


@settings(deadline=None)
@given(labels=st.lists(st.integers(0, 6), max_size=60))
def test_grouping_is_a_stable_sort(labels):
    if native.host() is None:
        pytest.skip("needs the native build")
    labels = np.array(labels, dtype=np.int64)
    order, offsets = native.host().group_by_class(labels, 7)
    assert np.array_equal(order, np.argsort(labels, kind="stable"))
    assert np.array_equal(np.diff(offsets), np.bincount(labels, minlength=7))
    assert offsets[0] == 0 and offsets.dtype == order.dtype == np.int64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: h.longtail_counts(0, 10, 10.0), "n_max must be at least 1"),
        (lambda h: h.longtail_counts(10, 0, 10.0), "num_classes must be at least 1"),
        (lambda h: h.longtail_counts(10, 10, 0.5), "ratio must be at least 1"),
        (lambda h: h.longtail_counts(10, 10, float("nan")), "ratio must be at least 1"),
        (lambda h: h.longtail_counts(10, 10, 2.0, "linear"), "'linear'"),
        (lambda h: h.group_by_class(np.array([0, 3]), 3), "label 3 at position 1 is outside"),
        (lambda h: h.group_by_class(np.array([-1]), 3), "label -1 at position 0 is outside"),
        (lambda h: h.group_by_class(np.zeros((2, 2), dtype=np.int64), 3), "one-dimensional"),
    ],
)
def test_wrong_use_of_the_host_module_is_a_value_error(host, call, message):
    with pytest.raises(ValueError, match=message):
        call(host)


def test_an_instruction_set_that_does_not_exist_is_refused(fresh):
    fresh.setenv("LTAT_ISA", "avx2")
    for ask in (native.op_devices, native.host, native.status):
        with pytest.raises(LtatError, match=r"LTAT_ISA='avx2'.* baseline, x86-64-v3, x86-64-v4$"):
            ask()
    spelled = re.findall(r'return "(.+)";', (ROOT / "csrc/kernels/isa.cpp").read_text())
    assert set(spelled) == set(native.ISAS)


def run_native_tests(isa):
    environment = os.environ | {"LTAT_ISA": isa}
    run = subprocess.run(
        [built("ltat_tests")], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


def test_the_torch_free_kernels_compute_the_same_bits_on_every_instruction_set():
    outputs = [run_native_tests(isa) for isa in ("baseline", "x86-64-v3", "x86-64-v4")]
    digests = {output.splitlines()[0] for output in outputs}
    assert len(digests) == 1 and digests.pop().startswith("digest ")


def test_cuda_kernels_are_launched_in_one_place():
    # A launch beside `launch` loses its error, which then surfaces in some later operation of torch.
    sources = (ROOT / "csrc" / "kernels").iterdir()
    launching = {path.name for path in sources if re.search("<<<|cudaLaunch", path.read_text())}
    assert launching == {"cuda_common.h"}
