"""docs/results.md: what `ltat reproduce` has measured, from bench/results/reproduce."""

import json
from pathlib import Path

from ltat.reproduce.page import page as target_page

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"
RESULTS = ROOT / "bench" / "results" / "reproduce"
INTRO = """\
This page is generated from `bench/results/reproduce` (`python -m bench.report`). Each part is the page that
`ltat reproduce TARGET` writes ([reproduce.md](reproduce.md)), of the runs that are finished so far; with each run stand
the checksum of its settings and, where the run recorded them, commit and machine. Small scale: only the order of the
rows says something about the paper's setting.
"""


def page() -> str:
    """The whole page."""
    parts = [target_page(json.loads(file.read_text())) for file in sorted(RESULTS.glob("*.json"))]
    return "\n".join(["# Results", "", INTRO, *map(deeper, parts)])


def deeper(text: str) -> str:
    """A page as a part of another: its headings one level lower."""
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in text.split("\n"))
