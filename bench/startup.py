"""Start-up, each time in a fresh process. Run: python -m bench.startup.

What `import ltat` and everything a training command imports add to `import torch`, and how long `ltat --help` takes,
the interpreter's own start included.
"""

import subprocess
import sys

import click
import torch

from bench._harness import ROOT, Run, append, bench_options, compare

PROGRAMS = {
    "python": "pass",
    "import torch": "import torch",
    "import ltat": "import torch, ltat",
    "import ltat.training": "import torch, ltat.training",
    "ltat --help": "from ltat.cli import main; main(['--help'])",
}


def fresh(program: str) -> Run:
    """Runs a program in a new interpreter."""
    command = [sys.executable, "-c", program]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


@click.command()
@bench_options(rounds=5)
def main(device: torch.device, rounds: int) -> None:
    """Start-up: imports and `--help`."""
    del device  # the processor's work alone
    cpu = torch.device("cpu")
    candidates = {name: fresh(program) for name, program in PROGRAMS.items()}
    append("startup", "fresh process", cpu, compare(candidates, cpu, rounds, target=0.0, warm_up=1))


if __name__ == "__main__":
    main()
