import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

from ltat import install_ffcv
from ltat.errors import LtatError

ROOT = Path(__file__).parents[1]
APT = "apt-get install -y --no-install-recommends"


class Machine:
    """A machine on which commands do nothing but change what is there."""

    def __init__(self, monkeypatch):
        self.tools = {"g++", "pkg-config", "apt-get", "sudo"}
        self.libraries = {"libturbojpeg", "opencv4"}
        self.modules = {"pip", "setuptools", "numba", "cv2", "PIL", "tqdm"}
        self.ffcv, self.builds, self.user = False, True, 0
        self.sudo_asks, self.apt_fails = False, 0
        self.commands: list[str] = []
        monkeypatch.setattr(install_ffcv, "_run", self.run)
        monkeypatch.setattr(install_ffcv, "find_spec", lambda name: name if name in self.modules else None)
        monkeypatch.setattr(shutil, "which", lambda tool, path=None: tool if tool in self.tools else None)
        monkeypatch.setattr(os, "geteuid", lambda: self.user)

    def run(self, command, env):
        line = " ".join(command)
        code, output = self.answer(line, env)
        return subprocess.CompletedProcess(command, code, output, "" if code == 0 else f"first\n{output or line}: no\n")

    def answer(self, line, env):
        if "import ffcv" in line:
            return (0, "") if self.ffcv else (1, "")
        if line.startswith("pkg-config"):
            name = line.split()[-1]
            ours = name == "opencv4" and (Path(env.get("PKG_CONFIG_PATH", "/none")) / "opencv4.pc").exists()
            return (0, f"-l{name}") if name in self.libraries or ours else (1, "")
        if line.startswith("g++"):
            return (0, "") if line.split("-l")[-1] in self.libraries else (1, "")
        self.commands.append(line)
        if line == "sudo -n true":
            return int(self.sudo_asks), ""
        if "apt-get install" in line:
            self.apt_fails -= 1
            if self.apt_fails >= 0:
                return 100, ""
            self.tools |= {"g++", "pkg-config"}
            self.libraries |= {"libturbojpeg", "opencv4"}
        if "--require-hashes" in line:
            self.ffcv = self.builds
        return 0, ""


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def test_what_is_there_is_left_alone(machine):
    machine.ffcv = True
    assert "is installed" in install_ffcv.install()
    assert machine.commands == []


def test_only_ffcv_is_built_where_all_else_is_there(machine):
    install_ffcv.install()
    (command,) = machine.commands
    assert "pip install" in command and "--require-hashes" in command.split()
    assert "--no-deps" in command.split(), "FFCV's own requirements would bring a second OpenCV"


def test_missing_python_packages_are_brought_and_no_second_opencv(machine):
    machine.modules -= {"numba", "tqdm"}
    install_ffcv.install()
    first, _ = machine.commands
    assert first.split()[-2:] == ["numba", "tqdm"]
    assert not any("torch" in command or "opencv-python" in command for command in machine.commands)
    machine.modules -= {"cv2"}
    machine.ffcv = False
    install_ffcv.install()
    assert "opencv-python-headless" in machine.commands[2].split()


@pytest.mark.parametrize(
    ("missing", "packages"),
    [
        ({"libturbojpeg"}, "libturbojpeg0-dev"),
        ({"opencv4"}, "libopencv-imgproc-dev"),
        ({"libturbojpeg", "opencv4"}, "libturbojpeg0-dev libopencv-imgproc-dev"),
    ],
)
def test_root_installs_the_packages_that_are_missing_and_no_others(machine, missing, packages):
    machine.libraries -= missing
    install_ffcv.install(agreed=True)
    assert machine.commands[0] == f"env DEBIAN_FRONTEND=noninteractive {APT} {packages}"


def test_without_a_compiler_everything_is_asked_for(machine):
    machine.tools -= {"g++", "pkg-config"}
    install_ffcv.install(agreed=True)
    wanted = "g++ pkg-config libturbojpeg0-dev libopencv-imgproc-dev"
    assert machine.commands[0].endswith(f"{APT} {wanted}")


@pytest.mark.parametrize(("terminal", "answer"), [(False, None), (True, "n"), (True, "")])
def test_no_system_package_is_installed_without_a_yes(machine, monkeypatch, capsys, terminal, answer):
    machine.libraries.clear()
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: terminal))
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert install_ffcv.main() == 1
    assert machine.commands == []
    assert f"run: {APT} libturbojpeg0-dev" in capsys.readouterr().err


def test_a_yes_at_the_terminal_installs(machine, monkeypatch):
    machine.libraries.clear()
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda question: "y")
    install_ffcv.install()
    assert "apt-get install" in machine.commands[0]


def test_the_archive_that_is_built_is_pinned_by_its_checksum():
    with install_ffcv.pinned_requirement() as file:
        assert Path(file).read_text() == f"ffcv==1.0.2 --hash=sha256:{install_ffcv.SHA256}\n"
    assert len(bytes.fromhex(install_ffcv.SHA256)) == 32


def test_an_argument_that_is_not_known_installs_nothing(machine, capsys):
    assert install_ffcv.main(["--no"]) == 2
    assert machine.commands == [] and "--no" in capsys.readouterr().err


def test_a_user_installs_by_a_sudo_that_asks_nothing(machine):
    machine.user = 1000
    machine.libraries.clear()
    install_ffcv.install(agreed=True)
    assert machine.commands[:1] == ["sudo -n true"]
    assert machine.commands[1].startswith(f"sudo -n env DEBIAN_FRONTEND=noninteractive {APT}")


@pytest.mark.parametrize("sudo", ["missing", "asks"])
def test_a_user_without_sudo_gets_one_line_with_the_command(machine, capsys, sudo):
    machine.user, machine.sudo_asks = 1000, True
    machine.tools -= {"sudo"} if sudo == "missing" else set()
    machine.libraries -= {"libturbojpeg"}
    assert install_ffcv.main(["--yes"]) == 1
    out, err = capsys.readouterr()
    assert out == "looking for FFCV\n" and err.count("\n") == 1
    assert err.endswith(f"run: sudo {APT} libturbojpeg0-dev\n")
    assert not any("apt-get" in command or "pip" in command for command in machine.commands)


def test_without_apt_the_needs_are_named(machine):
    machine.tools -= {"apt-get"}
    machine.libraries.clear()
    with pytest.raises(LtatError, match="headers of libturbojpeg and of OpenCV"):
        install_ffcv.install(agreed=True)


def test_old_package_lists_are_renewed_once(machine):
    machine.libraries.clear()
    machine.apt_fails = 1
    install_ffcv.install(agreed=True)
    assert [command.split("noninteractive ")[-1][:15] for command in machine.commands[:3]] == [
        "apt-get install",
        "apt-get update",
        "apt-get install",
    ]


def test_a_command_that_fails_is_named_with_its_last_lines(machine, capsys):
    machine.libraries.clear()
    machine.apt_fails = 2
    assert install_ffcv.main(["--yes"]) == 1
    err = capsys.readouterr().err
    assert "this command failed (its last lines stand above)" in err
    assert f"run it by hand: env DEBIAN_FRONTEND=noninteractive {APT}" in err
    assert err.startswith("first\n") and "Traceback" not in err


def test_a_build_that_cannot_be_imported_is_a_failure(machine):
    machine.builds = False
    with pytest.raises(LtatError, match="cannot be imported"):
        install_ffcv.install(agreed=True)


def test_without_pip_the_way_out_is_named(machine):
    machine.modules -= {"pip"}
    with pytest.raises(LtatError, match="-m ensurepip"):
        install_ffcv.install(agreed=True)


def test_our_description_of_opencv_stands_in_for_a_missing_one_and_goes_away(machine):
    machine.libraries -= {"opencv4"}
    with install_ffcv.build_environment() as env:
        folder = Path(env["PKG_CONFIG_PATH"])
        assert f"-I{folder} " in (folder / "opencv4.pc").read_text()
        assert "imgproc.hpp" in (folder / "opencv2/opencv.hpp").read_text()
    assert not folder.exists()
    machine.libraries |= {"opencv4"}
    with install_ffcv.build_environment() as env:
        assert env == dict(os.environ)


def test_no_command_runs_for_ever(monkeypatch):
    monkeypatch.setattr(install_ffcv, "_PATIENCE", 0.1)
    done = install_ffcv._run(["sleep", "60"], os.environ)
    assert done.returncode != 0 and "more than 0 s" in done.stderr


def test_the_script_needs_nothing_but_python():
    code = (
        "import sys, ltat.install_ffcv as i; print(i.VERSION, sorted({'torch', 'numpy', 'click'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "1.0.2 []\n"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(("required", "code"), [("1", 2), ("0", 0)])
def test_make_goes_on_without_ffcv_unless_it_is_required(tmp_path, required, code):
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin/python"
    python.write_text('#!/bin/sh\necho "FFCV was not installed: run this ($*)" >&2\nexit 1\n')
    python.chmod(0o755)
    for stamp in (".ready", ".built"):
        (tmp_path / stamp).touch()
    done = subprocess.run(
        ["make", f"VENV={tmp_path}", "ffcv"],
        cwd=ROOT,
        env=os.environ | {"LTAT_FFCV": required},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code and "FFCV was not installed: run this" in done.stderr
    assert not (tmp_path / ".ffcv").exists()
    assert ("--yes" in done.stderr) == (required == "1")
