"""A folder to take to a GPU machine that has no network. Run in a clone: python -m bench.carry DIR.

It holds the packages that such a machine usually lacks, unpacked, in the versions of this environment and for the
Python of that machine, and with --data-dir the images of CIFAR-10-LT, packed. With the sources it must stay under
64 MiB. There: python -m bench.gpu OUT --carried DIR.
"""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import click

from bench._pack import pack
from bench._parts import SITE
from bench._running import ROOT
from ltat.errors import LtatError
from ltat.files import appearing_together

LACKING = (
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions"),
    *("tomli-w", "pyautoattack"),
)
LEFT_OUT = ("pyautoattack/examples/",)  # weights of example models, 42 MB
LIMIT = 64.0  # MiB

Download = Callable[[Sequence[str], str, Path], None]
"""(requirements, Python's version, folder): puts a wheel of each into the folder."""


def download(requirements: Sequence[str], python: str, folder: Path) -> None:
    """Fetch wheels as pip is set up to, none of what they ask for.

    Raises:
        LtatError: pip cannot, with its last line.
    """
    chosen = ("--no-deps", "--only-binary=:all:", "--python-version", python, "--dest", str(folder))
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
    done = subprocess.run([*pip, *chosen, *requirements], capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        raise LtatError(f"pip cannot fetch wheels for Python {python} ({why}); correct --python or --package")


def requirement(package: str) -> str:
    """A package in the version of this environment, if it has one: pydantic and pydantic-core must be a pair."""
    try:
        return f"{package}=={metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return package


def unpack_wheel(wheel: Path, site: Path) -> None:
    """What a wheel installs, but for the large files that nothing here uses."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site, [name for name in archive.namelist() if not name.startswith(LEFT_OUT)])


def sources_size(besides: Path) -> int:
    """Bytes of the files that git tracks or would track, but for those in the folder ``besides``.

    Raises:
        LtatError: this is no clone.
    """
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        raise LtatError(f"{ROOT} is no clone, so its sources cannot be told from the rest; run this in a clone")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return sum(file.stat().st_size for file in files if file.is_file() and besides not in file.parents)


def mebibytes(folder: Path) -> float:
    """MiB of the files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def check_size(sizes: dict[str, float]) -> None:
    """Refuse what is too much to carry.

    Args:
        sizes: MiB, by what they are of.

    Raises:
        LtatError: together they are over the limit; says what is how large.
    """
    total = sum(sizes.values())
    if total > LIMIT:
        told = ", ".join(f"{what} {size:.1f}" for what, size in sizes.items())
        raise LtatError(
            f"{told}: together {total:.1f} MiB where {LIMIT:g} can be carried; leave out the largest "
            "(without --data-dir the training takes random images)"
        )


def prepare(
    folder: Path, data_dir: Path | None, python: str, packages: Sequence[str], fetch: Download = download
) -> dict[str, float]:
    """Fill ``folder``, which is whole afterwards or not there; MiB of what is to be carried.

    Raises:
        LtatError: the folder stands already, packages or images cannot be had, or all of it is too large.
    """
    if folder.exists():
        raise LtatError(f"{folder} is there already; delete it, or name another")
    sizes = {"sources": sources_size(folder) / 2**20}
    with appearing_together(folder) as made, tempfile.TemporaryDirectory() as wheels:
        fetch([requirement(package) for package in packages], python, Path(wheels))
        (made / SITE).mkdir()
        for wheel in sorted(Path(wheels).iterdir()):
            unpack_wheel(wheel, made / SITE)
        sizes["packages"] = mebibytes(made)
        if data_dir:
            pack(data_dir, made)
            sizes["images"] = mebibytes(made) - sizes["packages"]
        check_size(sizes)
    return sizes


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path, exists=True), help="CIFAR-10-LT as train.npz and test.npz.")
@click.option("--python", default="3.12", show_default=True, help="The version of Python there.")
@click.option("--package", "more", multiple=True, metavar="NAME", help="Another package to bring; repeatable.")
def main(folder: Path, data_dir: Path | None, python: str, more: tuple[str, ...]) -> None:
    """Fill FOLDER with what a GPU machine without network lacks."""
    try:
        sizes = prepare(folder.absolute(), data_dir, python, tuple(dict.fromkeys((*LACKING, *more))))
    except LtatError as error:
        raise click.UsageError(str(error)) from None
    print(
        *(f"{what} {size:.1f}," for what, size in sizes.items()), f"together {sum(sizes.values()):.1f} MiB", flush=True
    )
    print(f"there: python -m bench.gpu OUT --carried {folder}")


if __name__ == "__main__":
    main()
