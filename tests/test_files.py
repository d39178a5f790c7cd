import os
import stat

import pytest

from ltat import files
from ltat.errors import LtatError
from ltat.files import atomic_write_all, atomic_write_bytes, atomic_write_text, replacing


def test_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a/b/file.bin"
    atomic_write_bytes(path, b"old")
    atomic_write_bytes(str(path), b"new")
    assert path.read_bytes() == b"new"
    atomic_write_text(path, "é")
    assert path.read_bytes() == "é".encode()
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]


def test_file_has_ordinary_permissions(tmp_path):
    atomic_write_bytes(tmp_path / "ours", b"")
    (tmp_path / "usual").write_bytes(b"")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(LtatError, match="No space left on device"):
        atomic_write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_interrupt_leaves_no_temporary_file(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write_bytes(tmp_path / "file", b"new")
    assert not list(tmp_path.iterdir())


def test_no_file_of_a_set_appears_before_all_are_written(tmp_path, monkeypatch):
    events = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda handle: (events.append("sync"), real_sync(handle))[1])
    monkeypatch.setattr(files.os, "replace", lambda *names: (events.append("rename"), real_replace(*names))[1])
    atomic_write_all({tmp_path / "a": b"1", tmp_path / "b": b"2"})
    assert events == ["sync", "sync", "rename", "rename", "sync"]


def test_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LtatError, match=r"cannot write .*file/below"):
        atomic_write_bytes(tmp_path / "file/below", b"")


def test_a_large_file_takes_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new/large"
    with replacing(path) as temporary:
        temporary.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    with pytest.raises(LtatError, match=r"cannot write .*large: No space left"), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        raise KeyboardInterrupt
    assert path.read_bytes() == b"whole"
    assert [p.name for p in path.parent.iterdir()] == ["large"]
