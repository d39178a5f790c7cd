"""What `python -m bench.gpu` leaves behind: summary.json, summary.md, and one small archive of all of it."""

import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from bench._running import Outcome
from bench.report import bench_part, read_all, table, targets_part
from ltat.files import atomic_write_text, replacing

MEASURED_TFLOPS = 788  # bf16, random matrices of 8192 x 8192, on an H200
GFLOP_FORWARD = 1.111  # of one 32 x 32 image through ResNet-18
# An image costs two units for each of ten attack steps (forward, and backward to the image), three for a forward with a
# full backward, one for a forward: the student sees x + d and x - d, and its teacher too.
UNITS = {"plain AT-BSL step": 23, "teacher": 23, "student": 28}
LARGEST = 4 * 2**20  # bytes of a file in the archive: weights, states and images are larger, all else is smaller


def read_outcomes(out: Path) -> dict[str, Outcome]:
    """The outcomes of former calls with the same folder, by part.

    Raises:
        UsageError: something else stands there.
    """
    if not out.exists() or not any(out.iterdir()):
        return {}
    try:
        parts = json.loads((out / "summary.json").read_text())["parts"]
        return {part["name"]: Outcome(**part) for part in parts}
    except (OSError, ValueError, KeyError, TypeError):
        raise click.UsageError(
            f"{out} is not empty and holds no summary.json of this command; name a new folder"
        ) from None


def write_summary(out: Path, outcomes: Sequence[Outcome]) -> None:
    """summary.json and summary.md of what there is so far."""
    ceilings = _json(out / "ceilings.json")
    rates = throughput(out, float(str(ceilings.get("bf16_tflops", MEASURED_TFLOPS))))
    summary = {"parts": [asdict(outcome) for outcome in outcomes], "ceilings": ceilings, "throughput": rates}
    measured = read_all(out / "results")
    rows = [
        [o.name, o.state, f"{o.seconds:.0f} s", f"{o.limit:.0f} s", o.last_line.replace("|", "/")] for o in outcomes
    ]
    page = ["# GPU run\n", table(("part", "state", "took", "limit", "last line"), rows)]
    page += [f"Ceilings: {json.dumps(ceilings)}\n"] if ceilings else []
    page += [throughput_table(rates)] if rates else []
    page += [targets_part("Targets", measured, on_gpu=True)]
    page += [bench_part(name, cases) for name, cases in measured.items()]
    atomic_write_text(out / "summary.md", "\n".join(page))
    atomic_write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")


def throughput(out: Path, ceiling: float) -> list[dict[str, object]]:
    """Images/s of the training epochs and of the measured steps, and the share of two ceilings that their FLOPs are.

    The first epoch of a stage has captured and tuned, so it is left out where there are more.
    """
    rates: dict[str, tuple[float, int]] = {}
    epochs = read_epochs(out / "training")
    for stage in dict.fromkeys(row["stage"] for row in epochs):
        speeds = [row["images_per_s"] for row in epochs if row["stage"] == stage]
        rates[f"{stage}, epochs as trained"] = max(speeds[1:] or speeds), UNITS[stage]
    for case in read_all(out / "results").get("train_step", []):
        images = re.match(r"resnet18 (\d+)x\S+ 10 steps", case.first.case)
        for row in case.rows.values() if images else ():
            rates[f"{row.candidate}, {row.case}"] = int(images[1]) / row.median * 1e6, UNITS["plain AT-BSL step"]
    return [
        {
            "what": what,
            "images_per_s": round(speed),
            "tflops": round(tflops := speed * units * GFLOP_FORWARD / 1e3, 1),
            "mfu_percent": round(100 * tflops / ceiling, 1),
            "mfu_percent_of_788": round(100 * tflops / MEASURED_TFLOPS, 1),
        }
        for what, (speed, units) in rates.items()
    ]


def read_epochs(folder: Path) -> list[dict]:
    """The epochs in a run folder, but for a line that was cut off."""
    file = folder / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def throughput_table(rates: Sequence[Mapping[str, object]]) -> str:
    """The same as a table; MFU against the product just measured, and against 788 TFLOP/s."""
    return table(
        [name.replace("_", " ") for name in rates[0]], [[str(cell) for cell in rate.values()] for rate in rates]
    )


def write_archive(out: Path, archive: Path) -> None:
    """Everything in ``out`` but its large files, as one .tar.gz that unpacks to a folder of the same name."""
    with replacing(archive) as temporary, tarfile.open(temporary, "w:gz") as packed:
        for file in sorted(out.rglob("*")):
            if file.is_file() and file.stat().st_size <= LARGEST:
                packed.add(file, Path(out.name) / file.relative_to(out))


def _json(file: Path) -> dict[str, object]:
    return json.loads(file.read_text()) if file.exists() else {}
