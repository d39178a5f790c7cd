"""The GPU command on a machine that has torch and little else, without network and without .git.

python -m tests.stress.bare_machine

The environment is this one without the packages that such a machine lacks. First they are missing altogether, and only
the tests that need them may fail for it; then `python -m bench.carry` has put them into a folder, from what is
installed here where it would ask the network, and nothing may. There is no GPU here: what asks for one must say so, in
a summary that is whole.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from bench import carry
from bench._running import ROOT

THERE = ("typing-extensions",)  # torch asks for it; the folder brings one that is new enough
PARTS = ("ceilings", "pgd_step", "training")
TINY = ("model.name=small", "train.batch_size=8", "teacher.batch_size=4", "attack.steps=1", "eval.n_examples=4")


def entries(package: str) -> set[str]:
    """What an installed package has put into site-packages, by the names at its top."""
    files = metadata.files(package) or []
    return {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}


def bare_environment(folder: Path) -> Path:
    """A Python without the lacking packages."""
    ours = Path(metadata.distribution("torch").locate_file(""))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    lacking = set().union(*(entries(package) for package in carry.LACKING if package not in THERE))
    for entry in ours.iterdir():
        if entry.name not in lacking and not entry.name.startswith(("ltat", "__editable__", "_virtualenv")):
            (site / entry.name).symlink_to(entry)
    return folder / "venv" / "bin" / "python"


def wheels_of_here(requirements: Sequence[str], python: str, folder: Path) -> None:
    """Stands in for pip: what is installed of every package, as a wheel."""
    del python
    for requirement in requirements:
        package, _, version = requirement.partition("==")
        with zipfile.ZipFile(folder / f"{package}-{version}-py3-none-any.whl", "w") as wheel:
            for file in metadata.files(package) or []:
                if ".." not in file.parts and file.suffix != ".pyc":
                    wheel.write(file.locate(), str(file))


def copy_of_the_tree(folder: Path) -> Path:
    """The files that git tracks, with the kernels that are built, and no history."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in [*listed.splitlines(), *(f"ltat/{path.name}" for path in (ROOT / "ltat").glob("*.so"))]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(python: Path, tree: Path, words: Sequence[str], path: str = "") -> str:
    """What a module of the tree prints in the bare environment."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(python), "-m", *words]
    env["PYTHONPATH"] = path
    return subprocess.run(command, cwd=tree, env=env, text=True, capture_output=True, check=False).stdout


def outcomes(out: Path) -> dict[str, dict[str, str]]:
    """The parts of a run of the GPU command, by name; its page of results and its archive must be there too."""
    assert "| part | state |" in (out / "summary.md").read_text()
    with tarfile.open(f"{out}.tar.gz") as archive:
        assert {f"{out.name}/summary.json", f"{out.name}/summary.md"} <= set(archive.getnames())
    return {part["name"]: part for part in json.loads((out / "summary.json").read_text())["parts"]}


def write_images(folder: Path) -> Path:
    """Two classes of random images in the npz layout."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, n in (("train", 32), ("test", 8)):
        images = generator.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=np.arange(n) % 2)
    return folder


def without_packages(python: Path, tree: Path, out: Path) -> None:
    """They are named with the command that brings them, and the other tests are collected."""
    said = run(python, tree, ["bench.gpu", str(out), "--only", "tests", "--minutes", "4", "--commit", "none"])
    first, _, rest = said.partition("\n")
    assert first.startswith("missing here: ") and all(
        name in first for name in ("pydantic", "tomli-w", "pyautoattack")
    ), said
    assert "python -m bench.carry" in rest, said
    told = outcomes(out)["tests"]["last_line"]
    assert "error" in told and "skipped" in told, told  # here every test of a GPU is skipped


def with_packages(python: Path, tree: Path, carried: Path, folder: Path) -> None:
    """Nothing is missing any more, and the main method trains on the images that were brought."""
    only = [word for part in PARTS for word in ("--only", part)]
    given = ["--carried", str(carried), "--minutes", "2"]
    said = run(python, tree, ["bench.gpu", str(folder / "out"), *only, *given])
    assert "missing here" not in said, said
    assert set(outcomes(folder / "out")) == set(PARTS), said
    logs = "".join(log.read_text() for log in (folder / "out" / "logs").iterdir())
    assert "No module named" not in logs and "NVIDIA" in logs, logs
    assert (folder / "out" / "images" / "train.npz").exists(), logs
    settings = [word for setting in TINY for word in ("--set", setting)]
    place = ["--data-dir", str(carried), "--device", "cpu", "--epochs", "1"]
    said = run(python, tree, ["bench.paper_run", str(folder / "run"), *place, *settings], str(carried / carry.SITE))
    assert "teacher epoch 1" in said and "student epoch 1" in said, said


def main() -> None:
    if torch.cuda.is_available():
        raise SystemExit("this rehearsal is for a machine without a GPU; run python -m bench.gpu OUT itself")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        python, tree = bare_environment(folder), copy_of_the_tree(folder / "tree")
        without_packages(python, tree, folder / "missing")
        print("without the packages: they are named, and what does not need them runs", flush=True)
        sizes = carry.prepare(
            folder / "carried", write_images(folder / "images"), "3.12", carry.LACKING, wheels_of_here
        )
        with_packages(python, tree, folder / "carried", folder)
        print(f"with {sum(sizes.values()):.0f} MiB carried: nothing is missing, and both stages train", flush=True)


if __name__ == "__main__":
    main()
