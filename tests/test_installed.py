"""What a run records of the code that made it."""

import subprocess
from pathlib import Path

import pytest

from ltat import installed


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_clone_is_named_by_its_commit_and_a_plus_where_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package = tmp_path / "ltat"
    package.mkdir()
    file = package / "installed.py"
    file.write_text("")
    monkeypatch.setattr(installed, "__file__", str(file))
    assert installed.source_commit() is None  # an installed package
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert installed.source_commit() == head
    (package / "new.so").touch()  # what is not tracked is not part of the code
    assert installed.source_commit() == head
    file.write_text("changed")
    assert installed.source_commit() == f"{head}+"
    monkeypatch.setenv("PATH", "")
    assert installed.source_commit() is None
