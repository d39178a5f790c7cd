"""The wheel as a user builds it: from the tracked files alone, beside an installed torch."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPORT = """
import json, sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]  # one in place
import ltat, torch
from ltat import native
from ltat.ops import pgd_step
x = torch.full((2, 3), 0.5)
moved = pgd_step(x, x, x, eps=0.1, step=0.05)
print(json.dumps({"file": ltat.__file__, "info": native.build_info(), "moved": float(moved[0, 0]),
                  "problem": native.status().problem}))
"""


pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists() or any(find_spec(name) is None for name in ("pip", "setuptools")),
    reason="needs a git clone, pip and setuptools: the wheel is built in this very environment",
)


def tracked_files(folder: Path) -> Path:
    """A copy of the tracked files: nothing built or ignored can leak into the wheel."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split("\0"):
        if name and not name.startswith("tests/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tracked_files(tmp_path / "source")


@pytest.fixture(scope="module")
def built_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One source for the wheels with native kernels: the second compiles only what CUDA changes."""
    return tracked_files(tmp_path_factory.mktemp("wheels") / "source")


@pytest.fixture(scope="module")
def unoptimised(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """CMake's settings for launchers that end each command of a compiler in -O0, which halves the time of a build."""
    folder, settings = tmp_path_factory.mktemp("launchers"), {}
    for language, last in (("CXX", "-O0"), ("CUDA", "-Xptxas -O0")):
        launcher = folder / language
        launcher.write_text(f'#!/bin/sh\nexec "$@" {last}\n')
        launcher.chmod(0o755)
        settings[f"CMAKE_{language}_COMPILER_LAUNCHER"] = str(launcher)
    return settings


def build_and_install(source: Path, folder: Path, **environment: str) -> tuple[int, str]:
    """``pip install --target``, built without isolation; the exit code and all that was printed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LTAT_", "CUDAARCHS"))}
    command = [sys.executable, "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps", "--no-index"]
    command += ["--disable-pip-version-check", "--target", str(folder), str(source)]
    run = subprocess.run(
        command, env=env | environment, capture_output=True, text=True, timeout=900, check=False, cwd=folder.parent
    )
    return run.returncode, run.stdout + run.stderr


def report_of(folder: Path) -> dict:
    """What the installed package says of itself, asked away from the clone."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LTAT_", "PYTHONPATH"))}
    run = subprocess.run(
        [sys.executable, "-c", REPORT],
        env=env | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
        cwd=folder.parent,
        timeout=120,
    )
    report = json.loads(run.stdout.splitlines()[-1])
    assert Path(report["file"]).is_relative_to(folder)
    assert report["moved"] == pytest.approx(0.55)
    return report


def test_the_wheel_without_cuda_carries_both_libraries_and_leaks_no_build_path(built_source, unoptimised, tmp_path):
    target = tmp_path / "site"
    code, output = build_and_install(built_source, target, LTAT_CUDA="OFF", LTAT_NATIVE="1", **unoptimised)
    assert code == 0, output[-3000:]
    report = report_of(target)
    assert report["info"]["operators"] == "cpu" and report["info"]["cuda_archs"] is None
    assert report["problem"] is None
    libraries = list((target / "ltat").glob("*.so"))
    assert {path.name.split(".")[0] for path in libraries} == {"_ops", "_native"}, "what only tests need is left out"
    for library in libraries:
        assert str(built_source).encode() not in library.read_bytes(), f"{library.name} names the build folder"
    assert not list((target / "ltat").glob("**/*.cpp")), "sources do not belong into the installed package"


def test_the_wheel_with_nvcc_loads_where_no_device_is(built_source, unoptimised, tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    target = tmp_path / "site"
    settings = {"LTAT_CUDA": "ON", "CUDAARCHS": "90-real", "LTAT_NATIVE": "1"}
    code, output = build_and_install(built_source, target, **settings, **unoptimised)
    assert code == 0, output[-3000:]
    info = report_of(target)["info"]
    assert info["operators"] == "cpu, cuda" and info["cuda_archs"] == "90-real"


def test_without_a_compiler_the_pure_python_package_installs_and_says_so(source, tmp_path):
    target = tmp_path / "site"
    stale = source / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "ltat" / "_ops.so"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier build")
    code, output = build_and_install(source, target, CXX="/nonexistent/c++")
    assert code == 0, output[-3000:]
    assert "the native kernels were NOT built" in output and "--no-build-isolation" in output
    report = report_of(target)
    assert report["info"] is None and "not built" in report["problem"]
    assert (target / "ltat/reproduce/published.csv").exists() and list((target / "ltat/recipes").glob("*.toml"))


def test_without_a_compiler_a_required_native_build_fails(source, tmp_path):
    code, _ = build_and_install(source, tmp_path / "site", CXX="/nonexistent/c++", LTAT_NATIVE="1")
    assert code != 0 and not (tmp_path / "site" / "ltat").exists()
