"""`ltat bench`, with benches of a line each."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bench import BENCHES
from ltat.cli import bench
from ltat.cli.main import main


def ltat(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with two benches, of which the first fails."""
    root = tmp_path / "clone"
    (root / "bench").mkdir(parents=True)
    (root / "bench" / "__init__.py").write_text('BENCHES = {"bad": "Fails.", "good": "Notes how it was called."}')
    (root / "bench" / "bad.py").write_text("raise SystemExit(3)")
    (root / "bench" / "good.py").write_text(
        "import sys, pathlib; pathlib.Path('called').write_text(' '.join(sys.argv[1:]))"
    )
    monkeypatch.setattr(bench, "ROOT", root)
    monkeypatch.chdir(tmp_path)
    return root


def test_every_bench_that_is_listed_is_there():
    listed = ltat("bench", "--list")
    assert listed.exit_code == 0
    assert all(name in listed.output and (bench.ROOT / "bench" / f"{name}.py").exists() for name in BENCHES)


def test_a_failing_bench_does_not_keep_the_next_from_running_and_is_named(checkout: Path, tmp_path: Path):
    done = ltat("bench")
    assert done.exit_code == 2 and "these benches failed: bad;" in done.output
    assert (tmp_path / "called").exists()


def test_the_options_reach_the_bench_and_paths_mean_the_callers_folder(checkout: Path, tmp_path: Path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").touch()  # a stranger's, not to be taken for ours
    done = ltat("bench", "good", "--rounds", "3", "--results", "rows")
    assert done.exit_code == 0, done.output
    assert set((tmp_path / "called").read_text().split()) == {"--device=cpu", "--rounds=3", "--results=rows"}


def test_an_unknown_bench_is_wrong_use_and_names_the_others(checkout: Path):
    done = ltat("bench", "nothing")
    assert done.exit_code == 2 and "bad, good" in done.output


def test_outside_a_clone_one_sentence_says_where_the_benches_are(checkout: Path, tmp_path: Path):
    with pytest.raises(bench.LtatError, match="clone"):
        bench.find_benches(tmp_path / "site-packages")
