"""`ltat data`: places that cannot be written, and ratios that are not none."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from ltat.cli.main import main


@pytest.mark.parametrize("place", ["file/below", "/proc/below"])
def test_a_place_that_cannot_be_written_is_told(place: str, tmp_path: Path):
    (tmp_path / "file").touch()
    done = CliRunner().invoke(main, ["data", "prepare", "--dataset", "digits", "--out", str(tmp_path / place)])
    assert done.exit_code == 2 and "cannot write" in done.output


def test_a_ratio_of_zero_is_refused_and_not_replaced_by_the_default():
    done = CliRunner().invoke(main, ["data", "info", "--dataset", "digits", "--imbalance-ratio", "0"])
    assert done.exit_code == 2 and "0.0" in done.output
