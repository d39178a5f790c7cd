"""The command group; a command's module is imported when the command is used, so that `--help` is quick."""

import importlib
from typing import Any

import click

from ltat import __version__
from ltat.errors import LtatError
from ltat.installed import package_of
from ltat.interrupts import interrupted_once
from ltat.streams import enduring_output, plain_warnings, shown_once
from ltat.torchrun import launched_by_torchrun

COMMANDS = {
    "train": "Train by a method, on long-tailed data, into a run folder.",
    "eval": "Evaluate a checkpoint: clean, PGD and AutoAttack, tail classes apart.",
    "compare": "Train every method under one protocol: mean and spread over seeds.",
    "sweep": "Carry out a grid of methods, seeds and settings, here or on a cluster.",
    "reproduce": "Run a table or figure of the papers, and show ours beside the published figures.",
    "methods": "List the training methods: paper, attack, loss and settings.",
    "data": "Describe a data set, or write it as files that load fast.",
    "doctor": "Show versions, devices and the native build, and missing parts.",
    "bench": "Measure operations and training beside plain PyTorch (in a clone).",
    "demo": "Compare the method with its baseline on real digits, in minutes on a CPU.",
}


class WrongUse(click.ClickException):
    """What :class:`LtatError` becomes on the command line."""

    exit_code = 2


class Unsaid(click.ClickException):
    """The end of a rank of which another one has said the reason."""

    def show(self, file: Any = None) -> None:
        """Show nothing."""


SHARED = ("train", "eval")
"""The commands that several ranks run together."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of a researcher's day."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        if launched_by_torchrun() and cmd_name not in SHARED:
            raise LtatError(f"`ltat {cmd_name}` runs as one process; start it without torchrun")
        command: click.Command = importlib.import_module(f"ltat.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table above, importing none."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run as a program: neither a second Ctrl-C nor an output that fails ends it in a traceback."""
        with enduring_output(), shown_once(), interrupted_once(), plain_warnings():
            return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; wrong use and a missing package become one sentence and exit code 2.

        Of several ranks only the first one to fail says why.
        """
        if not launched_by_torchrun():
            return self._in_sentences(ctx)
        from ltat.ranks import first_to_fail

        try:
            return self._in_sentences(ctx)
        except click.ClickException as error:
            raise error if first_to_fail() else Unsaid("") from None
        except Exception:
            first_to_fail()
            raise

    def _in_sentences(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except LtatError as error:
            raise WrongUse(str(error)) from None
        except MemoryError as error:
            raise WrongUse(
                f"there is not enough memory ({error or 'none left'}); use smaller images or batches"
            ) from None
        except OSError as error:
            if error.filename is None:
                raise
            raise WrongUse(f"{error.filename} cannot be used ({error.strerror}); check the path") from None
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "ltat":
                raise
            name = package_of(error.name)
            raise WrongUse(f"the package {name} is missing; install it: pip install {name}") from None


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ltat")
def main() -> None:
    """Adversarial training on long-tailed data: robust also on the rare classes."""
