"""Whether two checkouts train and evaluate alike, bit for bit, on one machine with one torch.

python -m tests.golden record FOLDER --checkout DIR    run every case with the package in DIR
python -m tests.golden compare BEFORE AFTER            what differs between two recordings
python -m tests.golden old FOLDER --checkout DIR       end the runs of a recording with the package in DIR
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.golden.compare import compare, read
from tests.golden.record import record, record_again

ROOT = Path(__file__).resolve().parents[2]


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    for name in ("record", "old"):
        action = actions.add_parser(name)
        action.add_argument("folder", type=Path)
        action.add_argument("--checkout", type=Path, default=ROOT, metavar="DIR", help="This one where left out.")
        action.add_argument("--only", action="append", default=[], metavar="PATTERN", help="Cases; repeatable.")
    action = actions.add_parser("compare")
    action.add_argument("before", type=Path)
    action.add_argument("after", type=Path)
    for name in ("compare", "old"):
        actions.choices[name].add_argument(
            "--expect", action="append", default=[], metavar="PATTERN", help="Cases that may differ; repeatable."
        )
    return parser.parse_args(arguments)


def old(given: argparse.Namespace) -> bool:
    """Whether the checkout ends the runs of an older one as that one did."""
    with tempfile.TemporaryDirectory() as name:
        again = Path(name)
        record_again(again, given.checkout, given.only, given.folder)
        return compare(given.folder, again, given.expect, only=set(read(again)))


def main(arguments: list[str] | None = None) -> int:
    given = parsed(arguments)
    if given.action == "compare":
        return 0 if compare(given.before, given.after, given.expect) else 1
    if given.action == "old":
        return 0 if old(given) else 1
    failed = record(given.folder, given.checkout, given.only)
    for name in failed:
        print(f"failed: {name}, see {given.folder}/cases and {given.folder}/work")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
