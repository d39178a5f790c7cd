"""The command line: `ltat train`, `ltat eval`, `ltat data`, `ltat doctor`, `ltat demo`."""

from ltat.cli.main import main

__all__ = ["main"]
