"""The command line; `ltat --help` lists the commands."""

from ltat.cli.main import main

__all__ = ["main"]
