"""`ltat methods`."""

import inspect
import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ltat.config import RunConfig, Section
    from ltat.methods import Method


@click.command("methods")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
def command(name: str | None, as_json: bool) -> None:
    """List the training methods by their own docstrings, and the settings that all of them take.

    With NAME, explain that method and its own settings.
    """
    from ltat.methods import METHODS, find_method

    if name is not None:
        click.echo(json.dumps(describe(find_method(name)), indent=2) if as_json else explained(find_method(name)))
    elif as_json:
        click.echo(json.dumps({name: describe(method) for name, method in METHODS.items()}, indent=2))
    else:
        click.echo(listed(METHODS))


def listed(methods: "dict[str, type[Method]]") -> str:
    """Every method in four lines, then the sections that all of them have."""
    from ltat.config import RunConfig
    from ltat.config.reference import purpose, sections_of

    lines = []
    for name, method in methods.items():
        summary = describe(method)
        lines.append(f"{name}\n    {summary['paper']}")
        lines += [f"    {topic + ':':10}{summary[topic] or 'none'}" for topic in ("attack", "loss", "settings")]
    lines.append("every method (its own defaults may differ)")
    for name, section in sections_of(RunConfig).items():
        lines.append(f"    {purpose(section)}\n        {assignments(name, section)}")
    lines.append("One method and its settings: ltat methods NAME; all settings: ltat train --method NAME --show-config")
    return "\n".join(lines)


def explained(method: "type[Method]") -> str:
    """A method's module docstring, and each of its own settings with default and meaning."""
    from ltat.config.reference import purpose, settings_of, shown

    # A user's file may leave any docstring out.
    blocks = [inspect.getdoc(inspect.getmodule(method)) or inspect.cleandoc(method.__doc__ or "")]
    for name, section in own_sections(method.Config).items():
        lines = [f"{name}: {purpose(section)}".removesuffix(": ")]
        for one in settings_of(section):
            lines += [f"    {name}.{one.name}={shown(one.default)}", f"        {one.meaning}"]
        blocks.append("\n".join(line for line in lines if line.strip()))
    return "\n\n".join(filter(None, blocks))


def describe(method: "type[Method]") -> dict[str, str]:
    """Paper, attack, loss and the settings of a method's own."""
    module = inspect.getdoc(inspect.getmodule(method)) or ""
    own = own_sections(method.Config)
    return {
        "paper": module.partition("\n")[0],
        "attack": attack_of(method.Config),
        "loss": (inspect.getdoc(method) or "").partition("\n")[0],
        "settings": ", ".join(assignments(name, own[name]) for name in sorted(own)),
    }


def attack_of(config: "type[RunConfig]") -> str:
    """The training attack of a method's defaults in a line; empty without one."""
    attack = config.model_fields["attack"].get_default(call_default_factory=True)
    if attack.steps == 0:
        return ""
    radius, step = (f"{255 * value:.4g}/255" for value in (attack.eps, attack.step_size))
    return f"PGD-{attack.steps} on {attack.loss}, eps {radius}, step {step}, start {attack.start}, {attack.mode} mode"


def own_sections(config: "type[RunConfig]") -> "dict[str, Section]":
    """The sections that not every method has."""
    from ltat.config import RunConfig
    from ltat.config.reference import sections_of

    return {name: section for name, section in sections_of(config).items() if name not in RunConfig.model_fields}


def assignments(name: str, section: "Section") -> str:
    """The settings of a section, as they would be written after ``--set``."""
    from ltat.config.reference import settings_of, shown

    return ", ".join(f"{name}.{one.name}={shown(one.default)}" for one in settings_of(section))
