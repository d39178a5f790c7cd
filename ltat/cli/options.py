"""Options that several commands share."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ltat.config.sections import read_quotient
from ltat.errors import LtatError

# Named here once more, so that --help need not import what reads them.
DATASETS = (
    *("digits", "cifar10", "cifar100", "tiny-imagenet", "medmnist"),
    *("imagefolder", "imagelist", "npz", "beton"),
)

UNITS = {"h": 3600, "m": 60, "s": 1}

Command = TypeVar("Command", bound=Callable[..., Any])


class Ratio(click.ParamType):
    """An imbalance ratio of at least 1, or the word ``natural``."""

    name = "R|natural"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        """Read the number; its range is checked with the other settings."""
        if value == "natural":
            return "natural"
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor 'natural'; write for example 20.", param, ctx)


class Radius(click.ParamType):
    """A number, or a quotient such as 8/255."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the number or the quotient."""
        try:
            return float(read_quotient(value))  # type: ignore[arg-type]
        except ValueError:
            self.fail(f"{value!r} is not a number; write for example 8/255 or 0.03.", param, ctx)


class Duration(click.ParamType):
    """A length of time such as 90s, 25m or 1h30m, in seconds."""

    name = "25m"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the numbers and their units."""
        if isinstance(value, int | float):
            return float(value)
        parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", value)
        if not parts or "".join(number + unit for number, unit in parts) != value:
            self.fail(f"{value!r} is not a length of time; write for example 90s, 25m or 1h30m.", param, ctx)
        return sum(float(number) * UNITS[unit] for number, unit in parts)


def dataset_options(command: Command) -> Command:
    """--dataset, --data-dir, --imbalance-ratio, --download, and what only some data sets take."""
    options = [
        click.option("--dataset", metavar="D", help=f"{', '.join(DATASETS[:-1])} or {DATASETS[-1]}."),
        click.option("--data-dir", metavar="DIR", help="Where the data set lies."),
        click.option("--imbalance-ratio", type=Ratio(), help="Largest over smallest class; natural keeps all."),
        click.option("--download/--no-download", default=None, help="Fetch the data set if it is not there."),
        click.option("--image-size", type=click.IntRange(min=1), metavar="N", help="Scale image files to N x N."),
        click.option("--channels", type=click.IntRange(1, 3), metavar="1|3", help="Make image files grey or RGB."),
        click.option("--train-list", metavar="FILE", help="imagelist: lines of PATH LABEL for training."),
        click.option("--test-list", metavar="FILE", help="imagelist: the same for testing."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def printing(name: str, show: Callable[[], None], help_text: str) -> Callable[[Command], Command]:
    """A flag that prints something and stops, whatever the other options, as ``--help`` does."""

    def callback(context: click.Context, parameter: click.Parameter, given: bool) -> None:
        del parameter
        if given and not context.resilient_parsing:
            show()
            context.exit()

    return click.option(
        name, is_flag=True, is_eager=True, expose_value=False, callback=callback, help=f"{help_text} and stop."
    )


def comma_separated(text: str | None) -> tuple[str, ...] | None:
    """``a,b`` as ``("a", "b")``.

    Raises:
        LtatError: a name is empty.
    """
    if text is None:
        return None
    names = tuple(part.strip() for part in text.split(","))
    if not all(names):
        raise LtatError(f"the list {text!r} has an empty name; write for example clean,pgd20")
    return names
