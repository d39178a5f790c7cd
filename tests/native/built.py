"""What an in-place build leaves for the tests alone."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def built(name: str) -> Path:
    """A file of the newest build folder; without one the test is skipped."""
    found = sorted(ROOT.glob(f"build/*/{name}"), key=lambda path: path.stat().st_mtime)
    if not found:
        pytest.skip(f"needs {name} of an in-place native build with LTAT_TESTS")
    return found[-1]
