"""`python -m bench.carry`: what travels to a GPU machine without network, and what is too large for it."""

import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bench import carry
from bench._parts import PACKED, SITE
from ltat.errors import LtatError


class Wheels:
    """Stands in for pip: a wheel of two files for every requirement; remembers what it was asked for."""

    def __init__(self) -> None:
        self.requirements: list[str] = []
        self.python = ""

    def __call__(self, requirements: Sequence[str], python: str, folder: Path) -> None:
        self.requirements, self.python = list(requirements), python
        for requirement in requirements:
            name = requirement.partition("==")[0].replace("-", "_")
            with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as wheel:
                wheel.writestr(f"{name}/__init__.py", "found = True\n")
                wheel.writestr(f"{name}/examples/weights.pt", bytes(2**20))


def prepared(folder: Path, packages: Sequence[str] = carry.LACKING, data_dir: Path | None = None) -> Wheels:
    wheels = Wheels()
    carry.prepare(folder, data_dir, "3.12", packages, wheels)
    return wheels


def test_packages_are_importable_from_the_folder_in_the_versions_that_belong_together(tmp_path: Path):
    wheels = prepared(tmp_path / "carried")
    site = str(tmp_path / "carried" / SITE)
    code = f"import sys; sys.path.insert(0, {site!r}); import tomli_w, pydantic_core; assert tomli_w.found"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all("==" in requirement for requirement in wheels.requirements)  # pydantic asks for one core alone
    assert wheels.python == "3.12"


def test_the_weights_of_autoattacks_examples_stay_behind_and_nothing_else(tmp_path: Path):
    prepared(tmp_path / "carried")
    files = {str(path.relative_to(tmp_path / "carried" / SITE)) for path in tmp_path.rglob("carried/site/*/**/*")}
    assert "pyautoattack/__init__.py" in files and "pyautoattack/examples/weights.pt" not in files
    assert "pydantic/examples/weights.pt" in files


def test_everything_that_the_machine_lacks_is_asked_for_without_what_it_needs_in_turn(monkeypatch, tmp_path: Path):
    commands: list[list[str]] = []

    def ran(command: list[str], **given: object) -> subprocess.CompletedProcess:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", ran)
    carry.download(["tomli-w==1.2.0"], "3.12", tmp_path)
    (command,) = commands
    for words in (["--no-deps"], ["--only-binary=:all:"], ["--python-version", "3.12"], ["tomli-w==1.2.0"]):
        assert all(word in command for word in words)  # without the first, torch itself would be fetched
    assert not any("index" in word or "://" in word for word in command)


def test_what_pip_cannot_fetch_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    failed = subprocess.CompletedProcess([], 1, "", "much\nERROR: No matching distribution found for x\n")
    monkeypatch.setattr(subprocess, "run", lambda *given, **more: failed)
    with pytest.raises(LtatError, match=r"^pip cannot fetch wheels for Python 9\.9 \(ERROR: No matching"):
        carry.download(["x"], "9.9", tmp_path)


def test_what_is_too_large_is_refused_with_what_is_how_large_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setattr(carry, "LIMIT", 5.0)
    monkeypatch.setattr(carry, "sources_size", lambda besides: 2 * 2**20)
    prepared(tmp_path / "fits", ["tomli-w", "pydantic"])
    with pytest.raises(LtatError, match=r"^sources 2\.0, packages 4\.0: together 6\.0 MiB where 5 can be carried; "):
        prepared(tmp_path / "carried", ["a", "b", "c", "d"])
    assert not (tmp_path / "carried").exists()


def test_the_sources_count_with_what_git_would_track_and_without_the_folder_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setattr(carry, "ROOT", tmp_path)
    (tmp_path / ".gitignore").write_text("*.so\n")
    for name, size in (("ours.py", 100), ("built.so", 1000), ("carried/site/theirs.py", 10_000)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    assert carry.sources_size(tmp_path / "carried") == 100 + len("*.so\n")


def test_sources_that_are_no_clone_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(carry, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(LtatError, match="is no clone"):
        carry.sources_size(tmp_path / "carried")


def test_images_travel_packed_and_what_cannot_be_read_leaves_nothing(tmp_path: Path):
    given = tmp_path / "given"
    given.mkdir()
    for name in PACKED:
        np.savez(given / f"{name}.npz", images=np.zeros((3, 8, 8, 3), np.uint8), labels=np.arange(3))
    prepared(tmp_path / "carried", ["tomli-w"], given)
    assert {path.name for path in (tmp_path / "carried").iterdir()} == {SITE, *PACKED.values()}
    (given / "test.npz").unlink()
    with pytest.raises(LtatError, match=r"test\.npz"):
        prepared(tmp_path / "again", ["tomli-w"], given)
    assert not (tmp_path / "again").exists()


def test_a_folder_that_is_there_already_is_refused_in_one_sentence(tmp_path: Path):
    done = CliRunner().invoke(carry.main, [str(tmp_path)])
    assert done.exit_code == 2 and f"{tmp_path} is there already; delete it, or name another" in done.output
