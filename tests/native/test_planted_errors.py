"""Whether the emulation catches what it is there for."""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native.built import ROOT, built
from tests.native.planted_errors import PLANTED_ERRORS, PlantedError

SANITIZED = "ltat_emulation_sanitized"


def compile_command(kernel: str) -> list[str]:
    """How the build compiles a kernel for the emulation with sanitizers, without source and object."""
    entries = json.loads(built("compile_commands.json").read_text())
    command = next(
        entry["command"] for entry in entries if entry["file"].endswith(f"/{kernel}") and SANITIZED in entry["output"]
    )
    words = shlex.split(command)
    return words[: words.index("-o")]


def inputs(stem: str) -> str:
    """What the tests of one emulated kernel are linked with; the tests of the others could not show its error."""
    listed = built("ltat_emulated_tests.rsp").read_text().splitlines()
    files = {path: path.rpartition("/")[2] for path in listed}
    return "\n".join(
        path for path, file in files.items() if not file.startswith("test_") or file.startswith(f"test_{stem}.")
    )


def build(kernels: Path, kernel: str, optimisation: str) -> Path:
    """The tests of an emulated kernel, with this one in place of the project's."""
    compiler, *flags = compile_command(kernel)
    objects, others, runner = kernels / "planted.o", kernels / "inputs.rsp", kernels / "planted"
    others.write_text(inputs(kernel.removesuffix("_cuda.cu")))
    sanitizers = [flag for flag in flags if flag.startswith("-f") and "sanitize" in flag]
    command = [compiler, *flags, optimisation, "-o", objects, "-c", kernels / kernel]
    subprocess.run(command, check=True, timeout=120)
    subprocess.run([compiler, *sanitizers, objects, f"@{others}", "-o", runner], cwd=kernels, check=True, timeout=120)
    return runner


def is_caught(kernels: Path, kernel: str, optimisation: str) -> bool:
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    runner = build(kernels, kernel, optimisation)
    return subprocess.run([runner], env=environment, capture_output=True, timeout=120, check=False).returncode != 0


@pytest.mark.parametrize("error", PLANTED_ERRORS, ids=lambda error: error.name)
def test_a_planted_error_is_caught(error, tmp_path):
    built("ltat_emulated_tests")
    kernels = tmp_path / "csrc" / "kernels"
    shutil.copytree(ROOT / "csrc" / "kernels", kernels)
    error.apply(kernels)
    # The compiler takes most of the time, but without optimisation it does not know the sizes of objects.
    caught = any(is_caught(kernels, error.kernel, optimisation) for optimisation in ("-O0", "-O1"))
    assert caught, "the error was not caught"


def test_an_error_that_no_longer_fits_its_kernel_says_so(tmp_path):
    (tmp_path / "one.cu").write_text("a = b;")
    error = PlantedError("a slip", "one.cu", "one.cu", "a = c;", "a = d;")
    with pytest.raises(AssertionError, match="'a slip' 0 times instead of once, so write the error anew"):
        error.apply(tmp_path)
