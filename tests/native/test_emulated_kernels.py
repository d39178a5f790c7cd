"""The CUDA kernels, compiled as C++ and run on the CPU: each thread of a block on a stack of its own."""

import os
import subprocess
import sys
from pathlib import Path

from tests.native.built import ROOT, built

# Not the tests of the operators that are about torch and Python, nor one with gigabytes of images.
OF_KERNELS = "not compile and not contract and not one_clear_sentence and not gigabytes"
OF_MEMORY = f"{OF_KERNELS} and not repetition and not squared_temperature"


def run_op_tests(library: Path, orders: str, tests: str, **environment: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "LTAT_"))}
    settings = {"LTAT_NATIVE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "tests/ops", "-q", "-k", tests, "-p", "tests.native.emulated_ops"]
    # The capture of file descriptors would swallow the last words of a sanitizer.
    command += ["-p", "no:cacheprovider", "--capture=sys", f"--operators={library}", f"--orders={orders}"]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env=inherited | settings | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]
    assert " passed" in run.stdout


def runtime_of_the_sanitizers() -> str:
    """The libraries that have to be loaded before Python is; libstdc++ too, or its exceptions escape the sanitizer."""
    names = ("libasan.so", "libstdc++.so")
    found = [
        subprocess.run([compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        for name in names
    ]
    return " ".join(each.stdout.strip() for each in found)


def compiler() -> str:
    cache = built("CMakeCache.txt").read_text()
    return next(line.partition("=")[2] for line in cache.splitlines() if line.startswith("CMAKE_CXX_COMPILER:"))


def test_the_op_tests_pass_over_the_emulated_kernels_in_three_orders_of_threads():
    run_op_tests(built("_ops_emulated.so"), "ascending,descending,random:7", OF_KERNELS)


def test_the_op_tests_touch_no_memory_that_is_not_theirs():
    run_op_tests(
        built("_ops_emulated_sanitized.so"),
        "random:8",
        OF_MEMORY,
        LD_PRELOAD=runtime_of_the_sanitizers(),
        ASAN_OPTIONS="detect_leaks=0",
    )


def test_the_emulated_kernels_agree_with_those_of_the_cpu_on_random_cases():
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}
    command = [built("ltat_emulated_tests")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]
