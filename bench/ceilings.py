"""What the device can do at most: bf16 matrix products and copies of its memory. Run: python -m bench.ceilings FILE."""

import json
from pathlib import Path

import click
import torch

from bench._harness import compare, hardware

SIDE = {"cuda": 8192, "cpu": 256}
COPIED = {"cuda": 2**30, "cpu": 2**20}  # elements


def measure(device: torch.device) -> dict[str, object]:
    """The machine's name, TFLOP/s of a product of random bf16 matrices, GB/s of a copy, read and written."""
    side, elements = SIDE[device.type], COPIED[device.type]
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source, target = (torch.rand(elements, device=device) for _ in range(2))
    runs = {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}
    seconds = compare(runs, device, rounds=10, target=0.02, warm_up=5)
    return {
        "hardware": hardware(device),
        "torch": torch.__version__,
        "bf16_tflops": 2 * side**3 / seconds["product"].median / 1e12,
        "copy_gb_per_s": 2 * source.nbytes / seconds["copy"].median / 1e9,
    }


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--device", default="cuda", show_default=True)
def main(file: Path, device: str) -> None:
    """Write the ceilings to FILE, as JSON."""
    found = measure(torch.device(device))
    file.write_text(json.dumps(found, indent=2) + "\n")
    print(found)


if __name__ == "__main__":
    main()
