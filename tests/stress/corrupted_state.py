"""A run resumed from a state that is damaged somewhere ends as if nothing had happened, or says so in a sentence.

python -m tests.stress.corrupted_state            every 1,000th byte, a resumed run at 4 of them
python -m tests.stress.corrupted_state --long     a resumed run at every one
"""

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ltat.errors import LtatError
from ltat.training import train
from ltat.training.state_file import Unusable, before, read_state
from tests.stress.runs import same_run
from tests.training.tiny import tiny_config

CONFIG = tiny_config("method=at-bsl", "train.epochs=2")


def damages(content: bytes, every: int) -> Iterator[tuple[str, bytes]]:
    """A flipped bit, and an end, at each ``every``-th byte."""
    for place in range(0, len(content), every):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place // every % 8
        yield f"bit flipped in byte {place}", bytes(flipped)
        yield f"cut off at byte {place}", content[:place]


def must_show(state: Path) -> None:
    try:
        read_state(state)
    except Unusable:
        return
    raise AssertionError("it loads")


def must_end_the_same(whole: Path, folder: Path, damaged: bytes) -> None:
    """Resume with the state before at hand, and without."""
    shutil.copytree(whole, folder)
    (folder / "state.pt").write_bytes(damaged)
    train(CONFIG, folder, resume=True)
    same_run(whole, folder)
    before(folder / "state.pt").unlink(missing_ok=True)
    (folder / "state.pt").write_bytes(damaged)
    kept = (folder / "last.safetensors").read_bytes()
    try:
        train(CONFIG, folder, resume=True)
    except LtatError as error:
        assert "\n" not in str(error) and "state.pt" in str(error), error
    else:
        raise AssertionError("a damaged state without another was used")
    assert (folder / "last.safetensors").read_bytes() == kept, "damage reached the weights"
    shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1000, metavar="BYTES")
    parser.add_argument("--long", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        whole, spoilt = Path(work) / "whole", Path(work) / "state.pt"
        train(CONFIG, whole)
        every_damage = list(damages((whole / "state.pt").read_bytes(), options.every))
        step = 1 if options.long else len(every_damage) // 4 | 1  # odd, so that both kinds have their turn
        for number, (what, content) in enumerate(every_damage):
            try:
                spoilt.write_bytes(content)
                must_show(spoilt)
                if number % step == 0:
                    must_end_the_same(whole, Path(work) / "resumed", content)
            except AssertionError as error:
                raise SystemExit(f"{what}: {error}") from error
    print(f"{len(every_damage)} damaged states: every one is found")


if __name__ == "__main__":
    main()
