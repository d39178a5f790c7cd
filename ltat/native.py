"""Finding and loading the two native libraries; everything in ltat works without them, only slower.

``_ops.so`` holds the torch operators, ``_native`` the host helpers over NumPy arrays. The environment variable
``LTAT_NATIVE`` decides what a missing build means: unset, the pure-Python twins take over; ``1``, an error;
``0``, the native libraries are ignored even where they exist.
"""

import functools
import importlib
import os
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltat.errors import LtatError

if TYPE_CHECKING:
    import torch

ISAS = ("baseline", "x86-64-v3", "x86-64-v4")
"""The instruction sets that ``LTAT_ISA`` names, as ``csrc/kernels/isa.cpp`` spells them."""
REMEDY = "pip install --no-build-isolation . (needs a C++ compiler, cmake, ninja and an installed torch)"
TURN_ON = "unset LTAT_NATIVE"
_OPS = Path(__file__).with_name("_ops.so")
_OPERATORS = ("pgd_step", "pgd_step_", "balanced_kd", "gather_augment", "relu_grad_add", "affine_relu")


@dataclass(frozen=True)
class NativeStatus:
    """What of the native build can be used, and the one line that fixes what cannot."""

    ops: bool
    host: bool
    cuda: bool
    problem: str | None
    remedy: str | None


def op_devices() -> frozenset[str]:
    """Device types ("cpu", "cuda") on which the native torch operators run, after registering them.

    Raises:
        LtatError: ``LTAT_NATIVE=1`` and the library is missing or cannot be loaded.
    """
    problem = _ops_problem()
    if problem is not None:
        if _wanted() == "1":
            raise LtatError(f"LTAT_NATIVE=1, but {problem}; build with: {REMEDY}")
        return frozenset()
    import torch  # noqa: PLC0415

    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return frozenset(d for d in ("cpu", "cuda") if has("ltat::pgd_step", d.upper()))


@functools.cache
def host() -> types.ModuleType | None:
    """The pybind11 module with ``longtail_counts``, ``group_by_class`` and ``build_info``, or None.

    Raises:
        LtatError: ``LTAT_NATIVE=1`` and the module is missing.
    """
    if _wanted() == "0":
        return None
    try:
        return importlib.import_module("ltat._native")
    except ImportError as error:
        if _wanted() == "1":
            raise LtatError(f"LTAT_NATIVE=1, but ltat._native is missing ({error}); build with: {REMEDY}") from error
        return None


def build_info() -> dict[str, Any] | None:
    """What the native build was made with and runs on; None where nothing native can be used.

    Holds "operators" (device types of the torch operators) and, where the host module exists, "version",
    "compiler", "torch_headers", "torch_target", "isa" (chosen at run time), "cuda_compiler" and "cuda_archs"
    (both None without CUDA).
    """
    state = status()
    if not state.ops and not state.host:
        return None
    devices = sorted(op_devices()) if state.ops else []
    module = host() if state.host else None
    return {"operators": ", ".join(devices) or None} | (module.build_info() if module is not None else {})


def status() -> NativeStatus:
    """The state of the native build, for ``ltat doctor``.

    Raises:
        LtatError: ``LTAT_NATIVE`` or ``LTAT_ISA`` has a value it cannot have.
    """
    problem = _ops_problem()
    devices = op_devices() if problem is None else frozenset()
    host_found = _host_found()
    if problem is None and not host_found:
        problem = "ltat/_native is missing (Python's headers were not found when building)"
    return NativeStatus(
        ops=bool(devices),
        host=host_found,
        cuda="cuda" in devices,
        problem=problem,
        remedy=None if problem is None else TURN_ON if _wanted() == "0" else REMEDY,
    )


def problem_on(device: "torch.device") -> str | None:
    """Why no kernel of ``_ops.so`` runs on this GPU, with the line that builds them for it; ``None`` where they run.

    A library holds code for some architectures; which of them a GPU takes, its driver knows. So a kernel is launched.
    """
    reason = _launch_failure(device)
    if reason is None:
        return None
    import torch  # noqa: PLC0415

    name, (major, minor) = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    archs = (build_info() or {}).get("cuda_archs")
    built = "" if archs is None else f"; they are built for {archs}"
    return (
        f"the CUDA kernels do not run on {name} of compute capability {major}.{minor} ({reason}{built}); "
        f"build with: CUDAARCHS={major}{minor} {REMEDY}"
    )


def required() -> bool:
    """Whether ``LTAT_NATIVE=1`` makes an error of what the native build lacks."""
    return _wanted() == "1"


def _launch_failure(device: "torch.device") -> str | None:
    import torch  # noqa: PLC0415

    pixel = torch.zeros(1, device=device)
    try:
        torch.ops.ltat.pgd_step_.default(pixel, pixel, pixel, None, None, 0.0, 0.0, False, 0.0, 1.0)
    except RuntimeError as error:
        return str(error).partition("\n")[0].removeprefix("CUDA kernel launch failed: ")
    return None


def _host_found() -> bool:
    try:
        return host() is not None
    except LtatError:
        return False


def _wanted() -> str:
    """The value of ``LTAT_NATIVE``. An unknown instruction set is refused with it: the kernels would ignore it."""
    value = os.environ.get("LTAT_NATIVE", "")
    if value not in ("", "0", "1"):
        raise LtatError(f"LTAT_NATIVE={value!r} means nothing; unset it, or set it to 0 (off) or 1 (required)")
    isa = os.environ.get("LTAT_ISA", "")
    if isa not in ("", *ISAS):
        raise LtatError(f"LTAT_ISA={isa!r} means nothing; unset it, or set it to one of {', '.join(ISAS)}")
    return value


@functools.cache
def _ops_problem() -> str | None:
    """Loads ``_ops.so``; None, or why it cannot be used."""
    if _wanted() == "0":
        return "LTAT_NATIVE=0 turns the native kernels off"
    if not _OPS.exists():
        return "ltat/_ops.so was not built"
    try:
        import torch  # noqa: PLC0415 - `ltat doctor` and the data code ask for host() without paying for torch
    except ImportError as error:
        return f"torch cannot be imported ({error})"

    try:
        torch.ops.load_library(str(_OPS))
    except OSError as error:
        return _unusable(f"ltat/_ops.so does not load under torch {torch.__version__} ({error})")
    missing = [name for name in _OPERATORS if not torch._C._dispatch_has_kernel(f"ltat::{name}")]
    if missing:
        return _unusable(f"ltat/_ops.so was built from other sources than these: it has no {missing[0]}")
    return None


def _unusable(problem: str) -> str:
    warnings.warn(f"{problem}; the pure-Python twins take over. Rebuild with: {REMEDY}", stacklevel=4)
    return problem
