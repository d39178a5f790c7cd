"""`python -m ltat` is `ltat`."""

from ltat.cli import main

main(prog_name="ltat")
