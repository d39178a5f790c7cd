"""Which packages ltat stands on, and which of them are installed; imports none of them."""

from importlib import metadata

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
