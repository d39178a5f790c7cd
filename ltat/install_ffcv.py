"""Install FFCV for this Python: ``python -m ltat.install_ffcv [--yes]``. Nothing else of ltat, nor torch, is loaded.

``pip install ffcv`` alone fails nearly everywhere: it asks for the whole of OpenCV (700 MB of system packages) and
uses two of its libraries, and it would bring a second OpenCV for Python beside the first. So the two are named by a
package description of our own, and FFCV is built without its dependencies, which are brought one by one. What is
there already is left as it is; torch is never touched. System packages are installed only after a yes, from a person
or by ``--yes``; the archive of FFCV, whose setup runs on this machine, must have the checksum below.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from ltat.errors import LtatError

VERSION = "1.0.2"
SHA256 = "42766a487c8a659b543d070f24732c4b65aab8d96980f5792c63e91e55511f00"  # of its source archive on PyPI
MODULES = {
    "setuptools": "setuptools",  # FFCV's setup and one of its modules still ask for distutils
    "numba": "numba",
    "cv2": "opencv-python-headless",  # any of OpenCV's packages will do; two of them break each other
    "PIL": "pillow",
    "tqdm": "tqdm",
}
TOOLS = {"g++": "g++", "pkg-config": "pkg-config"}
LIBRARIES = {
    "libturbojpeg": (
        "libturbojpeg0-dev",
        "#include <turbojpeg.h>\nint main() { return tjDestroy(tjInitDecompress()); }",
    ),
    "opencv4": (
        "libopencv-imgproc-dev",
        "#include <opencv2/opencv.hpp>\nint main() { cv::Mat a, b; cv::resize(a, b, cv::Size(1, 1)); }",
    ),
}
_HEADER = "#include <opencv2/core.hpp>\n#include <opencv2/imgproc.hpp>\n"
_DESCRIPTION = """Name: opencv4
Description: the two of OpenCV's libraries that FFCV uses
Version: 4
Cflags: -I{folder} -I/usr/include/opencv4
Libs: -lopencv_imgproc -lopencv_core
"""
_IMPORT = "import ffcv.loader, ffcv.writer, ffcv.fields, ffcv.transforms"
_PATIENCE = 900.0  # seconds for one command
_LAST_LINES = 15  # of a command that failed


def main(arguments: Sequence[str] = ()) -> int:
    """Install FFCV, or print the obstacle in one line; the exit code."""
    unknown = [word for word in arguments if word != "--yes"]
    if unknown:
        print(f"unknown argument {unknown[0]}; there is only --yes, which installs system packages", file=sys.stderr)
        return 2
    try:
        print(install(agreed=bool(arguments)), flush=True)
    except LtatError as error:
        print(f"FFCV was not installed: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def install(agreed: bool = False) -> str:
    """Install the missing packages, build FFCV, and import it in a new process; the line for the user.

    ``agreed``: system packages may be installed without asking.

    Raises:
        LtatError: the obstacle, with the command that removes it.
    """
    print("looking for FFCV", flush=True)  # an import takes seconds
    if import_problem() is None:
        return f"FFCV {VERSION} is installed"
    with build_environment() as env:
        bring_system_packages(missing_packages(env), env, agreed)
        wanted = [package for module, package in MODULES.items() if find_spec(module) is None]
        if wanted:
            pip(wanted, env)
        # Without isolation and cache: built with the setuptools and the libraries of this very machine.
        options = ["--no-deps", "--no-build-isolation", "--no-cache-dir", "--force-reinstall", "--no-binary", "ffcv"]
        with pinned_requirement() as file:
            pip([*options, "--require-hashes", "--requirement", file], env)
    problem = import_problem()
    if problem is not None:
        raise LtatError(
            f"it was built and cannot be imported ({problem}); repair that, or remove it with: pip uninstall ffcv"
        )
    return f"FFCV {VERSION} is installed now"


@contextlib.contextmanager
def pinned_requirement() -> Iterator[str]:
    """A file of pip's that names FFCV with its checksum; pip takes none on its command line."""
    with tempfile.TemporaryDirectory(prefix="ltat-ffcv-") as name:
        file = Path(name, "requirements.txt")
        file.write_text(f"ffcv=={VERSION} --hash=sha256:{SHA256}\n")
        yield str(file)


def import_problem() -> str | None:
    """Why a new process cannot import this version of FFCV; None if it can."""
    version = f"from importlib.metadata import version; assert version('ffcv') == {VERSION!r}, version('ffcv')"
    done = _run([sys.executable, "-c", f"{version}; {_IMPORT}"], os.environ)
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1]


@contextlib.contextmanager
def build_environment() -> Iterator[dict[str, str]]:
    """Environment in which pkg-config finds OpenCV: the system's own description, else ours in a temporary folder."""
    env = dict(os.environ)
    if pkg_config("opencv4", env) is not None:
        yield env
        return
    with tempfile.TemporaryDirectory(prefix="ltat-ffcv-") as name:
        folder = Path(name)
        (folder / "opencv2").mkdir()
        (folder / "opencv2" / "opencv.hpp").write_text(_HEADER)
        (folder / "opencv4.pc").write_text(_DESCRIPTION.format(folder=folder))
        env["PKG_CONFIG_PATH"] = os.pathsep.join([name, *filter(None, [env.get("PKG_CONFIG_PATH")])])
        yield env


def missing_packages(env: Mapping[str, str]) -> list[str]:
    """The system packages, by Debian's names, without which FFCV cannot be built here."""
    tools = [package for tool, package in TOOLS.items() if shutil.which(tool, path=env.get("PATH")) is None]
    return tools + [package for name, (package, program) in LIBRARIES.items() if not links(name, program, env)]


def links(name: str, program: str, env: Mapping[str, str]) -> bool:
    """Whether a C++ program that uses a library can be built."""
    flags = pkg_config(name, env)
    if flags is None or shutil.which("g++", path=env.get("PATH")) is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "program.cpp")
        source.write_text(program)
        return _run(["g++", str(source), "-o", str(source.with_suffix("")), *flags], env).returncode == 0


def pkg_config(name: str, env: Mapping[str, str]) -> list[str] | None:
    """Compiler and linker flags of a library; None where pkg-config or the library is missing."""
    if shutil.which("pkg-config", path=env.get("PATH")) is None:
        return None
    done = _run(["pkg-config", "--cflags", "--libs", name], env)
    return done.stdout.split() if done.returncode == 0 else None


def bring_system_packages(packages: Sequence[str], env: Mapping[str, str], agreed: bool) -> None:
    """Install Debian packages, as root or by a ``sudo`` that asks no questions, once that is agreed to.

    Raises:
        LtatError: the user does not agree, neither is possible, or the installation failed.
    """
    if not packages:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if shutil.which("apt-get", path=env.get("PATH")) is None:
        raise LtatError(
            "system packages are missing; install g++, pkg-config and the headers of libturbojpeg and of OpenCV "
            "(core, imgproc) with this system's package manager, then run python -m ltat.install_ffcv again"
        )
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if sudo and (shutil.which("sudo", path=env.get("PATH")) is None or _run(["sudo", "-n", "true"], env).returncode):
        raise LtatError(
            f"system packages are missing and this user may not install them; run: sudo {' '.join(command)}"
        )
    if not (agreed or is_agreed(packages)):
        raise LtatError(
            "system packages are missing and their installation was not agreed to; "
            f"add --yes, or run: {' '.join([*sudo[:1], *command])}"
        )
    quiet = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive"]
    print(f"installing {', '.join(packages)}", flush=True)
    if _run([*quiet, *command], env).returncode != 0:  # the lists of packages may be missing or old
        _must([*quiet, "apt-get", "update"], env)
        _must([*quiet, *command], env)


def is_agreed(packages: Sequence[str]) -> bool:
    """Whether the person at the terminal, if there is one, lets system packages be installed."""
    if not (sys.stdin and sys.stdin.isatty()):
        return False
    answer = input(f"FFCV needs the system packages {', '.join(packages)}; install them? [y/N] ")
    return answer.strip().lower() in ("y", "yes")


def pip(arguments: Sequence[str], env: Mapping[str, str]) -> None:
    """``pip install`` into this Python.

    Raises:
        LtatError: pip is missing, or the installation failed.
    """
    if find_spec("pip") is None:
        raise LtatError(f"this Python has no pip; run: {sys.executable} -m ensurepip")
    print(f"pip install {' '.join(arguments)}", flush=True)
    _must([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments], env)


def _must(command: Sequence[str], env: Mapping[str, str]) -> None:
    done = _run(command, env)
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip().splitlines()
        print("\n".join(output[-_LAST_LINES:]), file=sys.stderr)
        raise LtatError(
            f"this command failed (its last lines stand above); repair that, or run it by hand: {' '.join(command)}"
        )


def _run(command: Sequence[str], env: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            command, env=env, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=_PATIENCE
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"it took more than {_PATIENCE:.0f} s")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
