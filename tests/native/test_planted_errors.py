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


def build(kernels: Path, kernel: str) -> Path:
    """The tests of the emulated kernels, with this one in place of the project's."""
    compiler, *flags = compile_command(kernel)
    objects, runner = kernels / "planted.o", kernels / "planted"
    sanitizers = [flag for flag in flags if flag.startswith("-f") and "sanitize" in flag]
    subprocess.run([compiler, *flags, "-o", objects, "-c", kernels / kernel], check=True, timeout=120)
    inputs = f"@{built('ltat_emulated_tests.rsp')}"
    subprocess.run([compiler, *sanitizers, objects, inputs, "-o", runner], cwd=kernels, check=True, timeout=120)
    return runner


@pytest.mark.parametrize("error", PLANTED_ERRORS, ids=lambda error: error.name)
def test_a_planted_error_is_caught(error, tmp_path):
    built("ltat_emulated_tests")
    kernels = tmp_path / "csrc" / "kernels"
    shutil.copytree(ROOT / "csrc" / "kernels", kernels)
    error.apply(kernels)
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    run = subprocess.run([build(kernels, error.kernel)], env=environment, capture_output=True, timeout=120, check=False)
    assert run.returncode != 0, "the error was not caught"


def test_an_error_that_no_longer_fits_its_kernel_says_so(tmp_path):
    (tmp_path / "one.cu").write_text("a = b;")
    error = PlantedError("a slip", "one.cu", "one.cu", "a = c;", "a = d;")
    with pytest.raises(AssertionError, match="'a slip' 0 times instead of once, so write the error anew"):
        error.apply(tmp_path)
