"""Runs cases one after another in one process, with the ``ltat`` that PYTHONPATH names.

It is started by file, knows nothing of the other modules here, reads the cases as JSON from standard input and writes a
line of JSON for each when it is done: torch is then imported once, and any checkout can be driven.
"""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

PATIENCE = 120.0  # seconds until a run must have written the lines after which it is interrupted


def ended(program, name: str, arguments: list[str]) -> int:
    """The exit code of a Python program run in this process."""
    before, sys.argv = sys.argv, [name, *arguments]
    try:
        program()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.argv = before
    return 0


def interrupted(lines: int, arguments: list[str]) -> int:
    """0 where ``ltat`` with these arguments has been interrupted after so many lines of metrics."""
    metrics = Path(arguments[arguments.index("--out") + 1]) / "metrics.jsonl"
    run = subprocess.Popen([sys.executable, "-m", "ltat", *arguments], stdout=sys.stdout, stderr=sys.stderr)
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and run.poll() is None:
        if metrics.exists() and len(metrics.read_bytes().splitlines()) >= lines:
            run.send_signal(signal.SIGINT)
            break
        time.sleep(0.002)
    else:
        run.kill()
    code = run.wait()
    print(f"interrupted run: exit code {code}", file=sys.stderr)
    return 0 if code == 1 else 1


def run_command(command: list[str]) -> int:
    """The exit code of one command of a case."""
    kind, *rest = command
    if kind == "keep":
        shutil.copytree(".", rest[0])
        return 0
    if kind == "interrupt":
        return interrupted(int(rest[0]), rest[1:])
    if kind == "python":
        return ended(lambda: runpy.run_path(rest[0], run_name="__main__"), rest[0], rest[1:])
    return ended(lambda: runpy.run_module("ltat", run_name="__main__"), "ltat", command)


def run_case(commands: list[list[str]]) -> str | None:
    """Run a case's commands in the current folder; what failed, or ``None``."""
    for number, command in enumerate(commands):
        out, err = Path(f"stdout-{number}.txt"), Path(f"stderr-{number}.txt")
        with out.open("w") as shown, err.open("w") as told, redirect_stdout(shown), redirect_stderr(told):
            code = run_command(command)
        if code:
            last = err.read_text().strip().splitlines()[-1:] or [""]
            return f"exit code {code} of {' '.join(command)}: {last[0]}"
    return None


def main() -> None:
    cases = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints past Python's streams
    import torch

    import ltat

    torch.set_num_threads(1)
    capability = torch.backends.cpu.get_cpu_capability()
    facts = {"ltat": str(Path(ltat.__file__).parent), "torch": torch.__version__, "cpu": capability}
    print(json.dumps(facts), file=answers)
    for case in cases:
        os.chdir(case["folder"])
        torch.manual_seed(0)  # a case must not depend on those before it
        started = time.perf_counter()
        failed = run_case(case["commands"])
        answer = {"name": case["name"], "failed": failed, "seconds": round(time.perf_counter() - started, 2)}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
