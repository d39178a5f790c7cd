"""Drives CMake and Ninja; what is built, and how, stands in CMakeLists.txt."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
FALLBACK = """
ltat: the native kernels were NOT built ({reason}).
ltat: the pure-Python build works, only slower. To retry, with a C++ compiler and torch installed:
ltat:     pip install --no-build-isolation .      (LTAT_NATIVE=1 turns this message into an error)
"""


def build_environment() -> dict[str, str]:
    """Environment in which cmake and ninja are found where pip put them, also without an active environment."""
    return os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def find_tool(name: str, env: dict[str, str]) -> str:
    """Path of a build tool, or the line that installs it."""
    path = shutil.which(name, path=env["PATH"])
    if path is None:
        raise RuntimeError(f"{name} was not found; install it with: pip install {name}")
    return path


class CMakeBuild(build_ext):
    """Builds _ops.so and _native next to the Python files of the package."""

    def run(self) -> None:
        """Build, or say in one place that only the pure-Python package is left."""
        try:
            self.build_native()
        except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
            if os.environ.get("LTAT_NATIVE") == "1":
                raise
            failed = isinstance(error, subprocess.CalledProcessError)
            reason = "cmake failed, see its messages above" if failed else error
            for stale in self.built_files():
                stale.unlink()
            print(FALLBACK.format(reason=reason), file=sys.stderr, flush=True)

    def build_native(self) -> None:
        """Configure and build into the source tree (in place, editable) or into the wheel's folder."""
        env = build_environment()
        cmake, ninja = find_tool("cmake", env), find_tool("ninja", env)
        build = self.build_folder()
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DLTAT_OUTPUT_DIR={self.output_folder()}",
            f"-DLTAT_VERSION={self.distribution.get_version()}",
            f"-DLTAT_CUDA={os.environ.get('LTAT_CUDA', 'AUTO')}",
            f"-DLTAT_TESTS={'ON' if self.in_place() else 'OFF'}",
        ]
        subprocess.run(configure, check=True, env=env)
        jobs = [f"-j{os.environ['MAX_JOBS']}"] if os.environ.get("MAX_JOBS") else []
        subprocess.run([cmake, "--build", str(build), *jobs], check=True, env=env)

    def in_place(self) -> bool:
        """Whether the source tree itself is to be importable (``--inplace``, editable installs)."""
        return bool(self.inplace or getattr(self, "editable_mode", False))

    def output_folder(self) -> Path:
        """Where the libraries go: beside the sources, or into the wheel's folder."""
        return ROOT / "ltat" if self.in_place() else Path(self.build_lib).resolve() / "ltat"

    def build_folder(self) -> Path:
        """Where the objects go; in place they are kept, so that the next build compiles only what changed."""
        kept = ROOT / "build" / f"native-{sys.implementation.cache_tag}"
        return kept if self.in_place() else Path(self.build_temp).resolve() / "cmake"

    def built_files(self) -> list[Path]:
        """Native libraries in the output folder; after a fallback there are none."""
        folder = self.output_folder()
        return [*folder.glob("_ops.so"), *folder.glob("_native*.so")]

    def get_outputs(self) -> list[str]:
        """The files above, as setuptools asks for them."""
        return [str(path) for path in self.built_files()]

    def get_output_mapping(self) -> dict[str, str]:
        """Nothing to copy back: an editable build already wrote into the source tree."""
        return {}


# The empty extension only marks the wheel as platform-dependent.
setup(ext_modules=[Extension("ltat._native", sources=[])], cmdclass={"build_ext": CMakeBuild})
