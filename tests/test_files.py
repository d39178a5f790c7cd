import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ltat import files, temporaries
from ltat.errors import LtatError
from ltat.files import (
    appearing_together,
    atomic_write_all,
    atomic_write_bytes,
    atomic_write_text,
    check_outputs,
    check_writable,
    read_bytes,
    read_text,
    replacing,
)


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


def write_at_once(path: Path, data: bytes) -> None:
    atomic_write_bytes(path, data)


def write_by_and_by(path: Path, data: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(data)


WAYS = pytest.mark.parametrize("write", [write_at_once, write_by_and_by])


@WAYS
def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path, write):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere/real", tmp_path / "link"
    link.symlink_to("elsewhere/real")
    for data in (b"made through the link", b"replaced"):
        write(link, data)
        assert link.is_symlink() and target.read_bytes() == data
    assert {p.name for p in (*tmp_path.iterdir(), *target.parent.iterdir())} == {"elsewhere", "link", "real"}


@WAYS
@pytest.mark.parametrize("linked", ["nowhere/file", "/proc/file", "link"])
def test_a_link_to_where_nothing_can_stand_is_one_sentence(tmp_path, write, linked):
    link = tmp_path / "link"
    link.symlink_to(linked)
    with pytest.raises(LtatError, match=r"cannot write .*link"):
        check_writable(link)
    with pytest.raises(LtatError, match=r"cannot write .*link"):
        write(link, b"lost")
    assert link.is_symlink() and not (tmp_path / "nowhere").exists()


@WAYS
def test_a_pipe_stays_a_pipe_and_is_written_to(tmp_path, write):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    check_writable(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write(pipe, b"through")
    reader.join(10)
    assert got == [b"through"] and pipe.is_fifo()


@WAYS
def test_a_device_is_written_to_and_not_replaced(tmp_path, write):
    (tmp_path / "nothing").symlink_to("/dev/null")
    check_writable(tmp_path / "nothing")
    write(tmp_path / "nothing", b"gone")
    assert (tmp_path / "nothing").is_symlink() and Path("/dev/null").is_char_device()
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(LtatError, match="No space left"):
        write(tmp_path / "full", b"no room")
    with pytest.raises(LtatError, match="it is a folder"):
        check_writable(tmp_path)


@pytest.mark.parametrize("piped", [True, False], ids=["pipe", "file"])
def test_standard_output_is_written_to_as_it_is(tmp_path, piped):
    (tmp_path / "shown").symlink_to("/proc/self/fd/1")  # not /dev/stdout itself: what fails here may replace it
    program = f"from ltat.files import *; atomic_write_text({str(tmp_path / 'shown')!r}, 'first '); print('second')"
    with (tmp_path / "out").open("wb") as file:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE if piped else file, timeout=60, check=True
        )
    assert (done.stdout if piped else (tmp_path / "out").read_bytes()) == b"first second\n"


def test_a_file_that_cannot_give_its_name_away_is_written_in_place(tmp_path, monkeypatch):
    def busy(*_):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(files.os, "replace", busy)
    (tmp_path / "mounted").write_bytes(b"old and longer")
    atomic_write_bytes(tmp_path / "mounted", b"new")
    assert (tmp_path / "mounted").read_bytes() == b"new"


def test_text_that_is_no_utf8_is_one_sentence(tmp_path):
    with pytest.raises(LtatError, match="not UTF-8"):
        atomic_write_text(tmp_path / "file", "name \udcff")


LEFT_OVER = """
import sys
from pathlib import Path
from ltat.files import appearing_together, replacing
with replacing(Path(sys.argv[1]) / "file"), appearing_together(Path(sys.argv[1])) as folder:
    (folder / "part").touch()
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_goes_with_the_next_write_and_what_a_living_one_holds_stays(tmp_path):
    arguments = [sys.executable, "-c", LEFT_OVER, str(tmp_path)]
    living, killed = (subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2))
    for process in (living, killed):
        assert process.stdout.readline() == b"ready\n"
    (tmp_path / ".other.abcdefgh.tmp").touch()
    kept = set(os.listdir(tmp_path))
    assert len(kept) == 5
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    atomic_write_text(tmp_path / "new", "")
    left = set(os.listdir(tmp_path))
    assert len(left & kept) == 3 and left - kept == {"new"}
    living.communicate(timeout=60)
    assert living.returncode == 0
    assert set(os.listdir(tmp_path)) == {"new", "file", "part", ".other.abcdefgh.tmp"}


def test_without_locks_nothing_of_others_is_removed(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(temporaries.fcntl, "flock", unsupported)
    (tmp_path / ".ltat-abcdefgh.tmp").touch()
    atomic_write_text(tmp_path / "new", "")
    assert set(os.listdir(tmp_path)) == {"new", ".ltat-abcdefgh.tmp"}


def test_a_temporary_swept_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    make = temporaries.tempfile.mkstemp
    made = []

    def swept_at_once(**kwargs):
        made.append(make(**kwargs))
        if len(made) == 1:
            os.unlink(made[0][1])
        return made[-1]

    monkeypatch.setattr(temporaries.tempfile, "mkstemp", swept_at_once)
    atomic_write_text(tmp_path / "new", "whole")
    assert len(made) == 2 and (tmp_path / "new").read_text() == "whole"


def test_files_that_appear_together_go_through_links(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    with appearing_together(tmp_path) as folder:
        (folder / "link").write_bytes(b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("one", "other"), [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("link", "a"), ("folder/../a", "a")]
)
def test_two_outputs_in_each_others_way_are_refused(tmp_path, one, other):
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LtatError, match=r"--(one|other) and --(one|other) both write to"):
        check_outputs({"--one": tmp_path / one, "--other": tmp_path / other})
    check_outputs({"--one": tmp_path / one, "--other": None})
    check_outputs({"--one": Path("/dev/null"), "--other": Path("/dev/null")})


def test_an_output_that_would_replace_an_input_is_refused(tmp_path):
    (tmp_path / "card").touch()
    with pytest.raises(LtatError, match=r"--json .* would replace the card"):
        check_outputs({"--json": tmp_path / "../" / tmp_path.name / "card"}, kept={"the card": tmp_path / "card"})


def test_a_null_character_in_a_name_is_one_sentence(tmp_path):
    for act in (check_writable, lambda path: atomic_write_text(path, "")):
        with pytest.raises(LtatError, match="null character"):
            act(tmp_path / "a\0b")
    with pytest.raises(OSError, match="null character"):
        read_bytes(tmp_path / "a\0b")


def test_only_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, reason in ((tmp_path / "pipe", "no file"), (Path("/dev/zero"), "no file"), (tmp_path, "a folder")):
        with pytest.raises(OSError, match=reason):
            read_bytes(path)
    (tmp_path / "large").write_bytes(bytes(11))
    with pytest.raises(OSError, match="are the most"):
        read_bytes(tmp_path / "large", largest=10)
    assert read_bytes(tmp_path / "large", largest=11) == bytes(11)


def test_a_text_with_a_mark_before_it_is_read_without(tmp_path):
    (tmp_path / "text").write_bytes(b"\xef\xbb\xbfa")
    assert read_text(tmp_path / "text") == "a"
