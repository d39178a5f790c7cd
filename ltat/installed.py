"""Which packages ltat stands on, and which of them are installed; imports none of them."""

import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "click",
    "safetensors",
    "pyautoattack",
    "pydantic",
    "rich",
    "tomli-w",
    "scikit-learn",
    "scipy",
)
OPTIONAL = {
    "ffcv": "python -m ltat.install_ffcv",
    "submitit": 'pip install "ltat[slurm]"',
}
"""Packages that some of ltat can use, each with the line that installs it."""
_PACKAGE_OF = {"PIL": "pillow", "sklearn": "scikit-learn", "tomli_w": "tomli-w"}


def package_versions() -> dict[str, str | None]:
    """The installed version of each package, None where it is missing."""
    return {name: _version(name) for name in PACKAGES}


def optional_versions() -> dict[str, str | None]:
    """The installed version of each package that some of ltat can use, None where it is missing."""
    return {name: _version(name) for name in OPTIONAL}


def package_of(module: str) -> str:
    """The package to install for a module such as ``"sklearn.datasets"``."""
    root = module.partition(".")[0]
    return _PACKAGE_OF.get(root, root)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def source_commit() -> str | None:
    """The commit of the clone that the package is run from, with a plus where it has been changed; else ``None``."""
    package = Path(__file__).resolve().parent
    if not (package.parent / ".git").exists():
        return None
    try:
        head = _git(package, "rev-parse", "--short=12", "HEAD")
        changed = _git(package, "status", "--porcelain", "--untracked-files=no", "--", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
