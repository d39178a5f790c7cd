"""A GPU that the library holds no code for runs the twins and says so once; every other one runs the kernels."""

import importlib
import warnings
from contextlib import suppress
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from click.testing import CliRunner

from ltat import native
from ltat.cli.main import main
from ltat.errors import LtatError
from ltat.ops import affine_relu, balanced_kd, devices, gather_augment, pgd_step, relu_grad_add
from tests.marks import needs_cuda
from tests.ops.conftest import OPERATORS

REASON = "no kernel image is available for execution on the device"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two GPUs of which only the second has code in the library; the devices on which a kernel was tried."""
    monkeypatch.delenv("LTAT_NATIVE", raising=False)
    tried: list[torch.device] = []

    def failure(device: torch.device) -> str | None:
        tried.append(device)
        return REASON if device.index == 0 else None

    monkeypatch.setattr(native, "_launch_failure", failure)
    monkeypatch.setattr(native, "build_info", lambda: {"cuda_archs": "75,80-real"})
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Quadro K2")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (3, 7))
    devices._found.cache_clear()
    yield tried
    devices._found.cache_clear()


def test_a_gpu_without_code_is_told_once_with_how_to_build_for_it(asked, recwarn):
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    assert [devices.has_kernels(device) for device in (first, second, first, second)] == [False, True, False, True]
    assert asked == [first, second] and len(recwarn) == 1
    said = str(recwarn[0].message)
    assert "\n" not in said and "CUDAARCHS=37 pip install" in said
    assert all(part in said for part in ("Quadro K2", "3.7", REASON, "75,80-real", "twins"))


def test_where_the_kernels_are_required_a_gpu_without_code_is_an_error(asked, monkeypatch):
    monkeypatch.setenv("LTAT_NATIVE", "1")
    with pytest.raises(LtatError, match="LTAT_NATIVE=1, but the CUDA kernels do not run on Quadro K2"):
        devices.has_kernels(torch.device("cuda", 0))
    assert devices.has_kernels(torch.device("cuda", 1))


class OnGpu(torch.Tensor):
    """A tensor of the CPU that says it lies on a GPU."""

    index: int
    is_cpu = False
    device = property(lambda self: torch.device("cuda", self.index))

    @staticmethod
    def of(tensor: torch.Tensor, index: int) -> "OnGpu":
        made = tensor.as_subclass(OnGpu)
        made.index = index
        return made


def call(name: str, x: object) -> None:
    """The operation of that name on ``x``, which may lie elsewhere than its other tensors."""
    ones, channels = torch.ones(2, 3), torch.ones(3)
    arguments = {
        "pgd_step": lambda: pgd_step(x, ones, ones, eps=0.1, step=0.1),
        "balanced_kd": lambda: balanced_kd(x, torch.tensor([0, 1]), channels),
        "gather_augment": lambda: gather_augment(x),
        "relu_grad_add": lambda: relu_grad_add(x, ones),
        "affine_relu": lambda: affine_relu(x, channels, channels),
    }
    arguments[name]()


def pixels(name: str) -> torch.Tensor:
    return torch.zeros(2, 4, 4, 3, dtype=torch.uint8) if name == "gather_augment" else torch.zeros(2, 3)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("index", [0, 1])
def test_every_operation_calls_the_kernel_where_it_runs_and_never_where_it_does_not(name, index, asked, monkeypatch):
    called: list[str] = []

    class Namespace:
        def __getattr__(self, operator: str):
            kernel = Mock(side_effect=lambda *arguments: called.append(operator))
            kernel.default = kernel
            return kernel

    monkeypatch.setattr(torch.ops, "ltat", Namespace())
    monkeypatch.setattr(importlib.import_module(f"ltat.ops.{name}"), "_NATIVE_DEVICES", frozenset({"cpu", "cuda"}))
    for _ in range(2):
        with suppress(Exception), warnings.catch_warnings():  # what follows cannot work on a tensor of no GPU
            warnings.simplefilter("ignore")
            call(name, OnGpu.of(pixels(name), index))
    assert called == [name] * 2 * index and len(asked) == 1


@pytest.mark.parametrize("name", OPERATORS)
def test_a_tensor_of_the_cpu_asks_no_gpu(name: str, asked):
    call(name, pixels(name))
    assert asked == []


def test_a_compiled_function_takes_the_answer_as_a_constant(asked):
    @torch.compile(backend="eager", fullgraph=True)
    def doubled(x: torch.Tensor, device: torch.device) -> torch.Tensor:
        return x * 2 if devices.has_kernels(device) else x

    assert doubled(torch.ones(1), torch.device("cuda", 1)).item() == 2
    with pytest.warns(UserWarning, match="do not run on Quadro K2"):
        assert doubled(torch.ones(1), torch.device("cuda", 0)).item() == 1


def test_doctor_says_of_every_gpu_whether_the_kernels_run(asked, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    built = native.NativeStatus(ops=True, host=True, cuda=True, problem=None, remedy=None)
    monkeypatch.setattr(native, "status", lambda: built)
    lines = CliRunner().invoke(main, ["doctor"]).output.splitlines()
    assert "  cuda_archs: 75,80-real" in lines and "  on cuda:1: the CUDA kernels run" in lines
    (missing,) = [line for line in lines if line.startswith("  on cuda:0: ")]
    assert "CUDAARCHS=37" in missing


def test_a_kernel_that_cannot_be_launched_is_a_reason_and_not_an_exception(monkeypatch):
    def failing(*arguments):
        raise RuntimeError(f"CUDA kernel launch failed: {REASON}\nException raised from enqueue")

    operator = SimpleNamespace(pgd_step_=SimpleNamespace(default=failing))
    monkeypatch.setattr(torch.ops, "ltat", operator)
    assert native._launch_failure(torch.device("cpu")) == REASON


@pytest.mark.skipif("cpu" not in native.op_devices(), reason="needs the native build")
def test_the_trial_launch_is_a_valid_call():
    assert native._launch_failure(torch.device("cpu")) is None


@needs_cuda
def test_on_the_gpu_at_hand_the_kernels_run():
    if "cuda" not in native.op_devices():
        pytest.skip("needs the CUDA kernels")
    assert native.problem_on(torch.device("cuda", 0)) is None and devices.has_kernels(torch.device("cuda", 0))
