"""An output that fails ends no work."""

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from ltat.streams import Enduring, enduring
from ltat.training.reporting import Reporter
from tests.training.test_reporting import ROW

LTAT = [sys.executable, "-m", "ltat"]


class Full(io.StringIO):
    """A stream that takes nothing."""

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_a_stream_that_fails_is_written_to_once_and_says_why():
    stream = Enduring(Full())
    for _ in range(2):
        assert stream.write("text\n") == 5
        stream.flush()
    assert stream.failure is not None and stream.failure.errno == 28
    assert enduring(None) is None


@pytest.mark.parametrize("terminal", [True, False])
def test_a_console_that_fails_stops_no_reporter(terminal: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", Full())
    reporter = Reporter()
    reporter.console = Console(file=reporter.console.file, force_terminal=terminal)
    with reporter:
        reporter.begin("student", 10)
        reporter.advance(10)
        reporter.say("a line")
        reporter.epoch(ROW, epochs=1)


def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen([*LTAT, "methods"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0


def test_an_output_that_is_lost_is_reported_and_no_traceback():
    with open("/dev/full", "wb") as full:
        done = subprocess.run([*LTAT, "methods"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the output could not be printed") and done.stderr.count("\n") == 1


def test_closed_streams_lend_their_numbers_to_no_file(tmp_path):
    inside = "f = [open(str(n), 'w') for n in range(3)]; os.write(1, b'x'); os.write(2, b'x')"
    code = f"import os; from ltat.streams import enduring_output\nwith enduring_output():\n {inside}"
    subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code], cwd=tmp_path, check=True)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == 3 * [b""]


def test_a_letter_that_a_terminal_lacks_becomes_another(tmp_path):
    below = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    stream = Enduring(below)
    stream.write("█… é ± ε \udcff")
    stream.flush()
    assert below.buffer.getvalue().decode("latin-1") == "#... é ± ? ?" and stream.failure is None


def test_no_command_ends_in_a_letter_that_its_terminal_lacks(tmp_path):
    report = tmp_path / "summary.json"
    done = subprocess.run(
        [*LTAT, "data", "info", "digits", "--json", str(report)],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
    )
    assert b"#####" in done.stdout and report.exists() and done.stderr == b""
