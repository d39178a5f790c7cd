"""Every test of an op runs on each device, and on CPU both with the native operator and with the twin."""

import importlib

import pytest
import torch

from ltat import native

OPERATORS = ("pgd_step", "balanced_kd", "gather_augment", "relu_grad_add", "affine_relu")


@pytest.fixture(params=["cpu-native", "cpu-twin", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The device to test on; "cpu-twin" hides the native operators from the public functions."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if request.param == "cpu-native" and "cpu" not in native.op_devices():
        pytest.skip("needs the native build")
    if request.param == "cpu-twin":
        for name in OPERATORS:
            monkeypatch.setattr(importlib.import_module(f"ltat.ops.{name}"), "_NATIVE_DEVICES", frozenset())
    return torch.device(request.param.split("-")[0])


@pytest.fixture(params=["cpu", "cuda"])
def native_device(request: pytest.FixtureRequest) -> torch.device:
    """A device that has native operators, for what only they promise."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if request.param not in native.op_devices():
        pytest.skip("needs the native build")
    return torch.device(request.param)
