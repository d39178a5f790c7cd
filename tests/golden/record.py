"""Runs the cases with the package of a checkout, and keeps of each what a user can measure."""

import fnmatch
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from tests.golden.cases import HERE, all_cases

Part = dict[str, Any]
CLOCK = {"seconds", "images_per_s"}
NO_FIGURES = {"env.json", "config.toml"}  # the machine, and settings, which the cases ``settings-…`` hold
LONGEST = 40  # of a list that is kept as it is


def recipes(checkout: Path) -> list[str]:
    """The names of the recipes that a checkout lists."""
    command = [sys.executable, "-m", "ltat", "train", "--list-recipes"]
    listed = subprocess.run(command, env=environment(checkout), check=True, capture_output=True, text=True).stdout
    return [line for line in listed.splitlines() if line and not line.startswith(" ")]


def environment(checkout: Path) -> dict[str, str]:
    """One thread, and the package of the checkout."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **single, "PYTHONPATH": str(checkout), "COLUMNS": "200"}


def record(folder: Path, checkout: Path, only: list[str]) -> list[str]:
    """Run the cases into ``folder``; the names of those that failed."""
    chosen = [case for case in all_cases(recipes(checkout)) if matches(case.name, only)]
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    commands = {}
    for case in chosen:
        kept = folder / "runs" / slug(case.name)
        shutil.rmtree(kept, ignore_errors=True)
        keep = (("keep", str(kept)),) if case.again else ()
        commands[case.name] = (*case.commands, *keep, *case.again)
    return run(folder, checkout, commands)


def record_again(folder: Path, checkout: Path, only: list[str], source: Path) -> list[str]:
    """Run what a later version must still be able to on the runs that are kept in the recording ``source``."""
    (folder / "cases").mkdir(parents=True, exist_ok=True)
    commands = {}
    for case in all_cases([]):
        kept = source / "runs" / slug(case.name)
        if case.again and kept.exists() and matches(case.name, only):
            shutil.copytree(kept, folder / "work" / slug(case.name))
            commands[case.name] = case.again
    return run(folder, checkout, commands)


def run(folder: Path, checkout: Path, commands: dict[str, tuple]) -> list[str]:
    """Run the commands of each case in its own folder and write what they left; the names of those that failed."""
    cases = []
    for name, own in commands.items():
        place = folder / "work" / slug(name)
        place.mkdir(parents=True, exist_ok=True)
        cases.append({"name": name, "folder": str(place.resolve()), "commands": own})
    started, failed = time.perf_counter(), []
    with tempfile.TemporaryFile("w+") as given:
        json.dump(cases, given)
        given.seek(0)
        command = [sys.executable, str(HERE / "worker.py")]
        worker = subprocess.Popen(
            command, stdin=given, stdout=subprocess.PIPE, text=True, env=environment(checkout.resolve())
        )
    assert worker.stdout is not None
    facts = json.loads(worker.stdout.readline())
    assert Path(facts["ltat"]) == checkout.resolve() / "ltat", f"{facts['ltat']} was imported instead of {checkout}"
    for number, line in enumerate(worker.stdout, 1):
        answer = json.loads(line)
        failed += [answer["name"]] if answer["failed"] else []
        keep_figures(folder, answer)
        said = answer["failed"] or ""
        print(f"{number}/{len(cases)} {answer['name']} {answer['seconds']} s {said}", flush=True)
    worker.wait()
    about = {**facts, **origin(checkout), "seconds": round(time.perf_counter() - started), "cases": len(cases)}
    (folder / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    return failed


def origin(checkout: Path) -> dict[str, Any]:
    """The commit, whether files differ from it, and the native libraries."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()

    native = {path.name: file_digest(path) for path in sorted((checkout / "ltat").glob("*.so"))}
    return {"commit": git("rev-parse", "HEAD"), "changed": git("status", "--porcelain").splitlines(), "native": native}


def keep_figures(folder: Path, answer: dict[str, Any]) -> None:
    """Write the record of a case that is done, and remove its files."""
    place = folder / "work" / slug(answer["name"])
    content = {**answer, "parts": {} if answer["failed"] else parts(place)}
    path = folder / "cases" / f"{slug(answer['name'])}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    if not answer["failed"]:
        shutil.rmtree(place)


def parts(place: Path) -> dict[str, Part]:
    """What the files in a case's folder say, by part: the tensors, the rows of metrics, the figures of reports."""
    found: dict[str, Part] = {}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place).as_posix()
        if path.suffix == ".safetensors":
            found[f"weights {name}"] = {key: tensor_digest(tensor) for key, tensor in load_file(path).items()}
        elif path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found |= {f"metrics {name} row {number}": flat(row) for number, row in enumerate(rows, 1)}
        elif path.suffix == ".json" and path.name not in NO_FIGURES:
            found[f"report {name}"] = figures(flat(json.loads(path.read_text())))
        elif path.name.startswith("stdout") and path.read_text().startswith("method = "):
            found["settings"] = flat(tomllib.loads(path.read_text()))
    return found


def tensor_digest(tensor: Any) -> str:
    """SHA-256 of type, shape and values."""
    head = f"{tensor.dtype} {tensor.shape}\n".encode()
    return hashlib.sha256(head + tensor.tobytes()).hexdigest()


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def flat(tree: dict[str, Any], prefix: str = "") -> Part:
    """Values by dotted name, but for the clock's; long lists as SHA-256."""
    found: Part = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif key not in CLOCK:
            found[f"{prefix}{key}"] = shortened(value)
    return found


def shortened(value: Any) -> Any:
    text = json.dumps(value)
    if isinstance(value, list) and len(value) > LONGEST:
        return [f"{len(value)} values, SHA-256 {hashlib.sha256(text.encode()).hexdigest()}"]
    return value


def figures(values: Part) -> Part:
    """The values that are numbers; sentences, names and versions may change."""
    return {name: value for name, value in values.items() if not isinstance(value, str)}


def matches(name: str, patterns: list[str]) -> bool:
    """Whether a name fits one of the patterns, or there is none."""
    return not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def slug(name: str) -> str:
    """A file's name for a case."""
    return name.replace("/", "__")
