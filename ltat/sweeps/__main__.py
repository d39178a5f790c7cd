"""The processes of a sweep: `python -m ltat.sweeps run` carries out one run, `… check` tries several."""

import sys

from ltat.sweeps import checking, worker

if __name__ == "__main__":
    sys.exit({"run": worker.main, "check": checking.main}[sys.argv[1]]())
