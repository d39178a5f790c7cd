"""`ltat methods`."""

import inspect
import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ltat.config import RunConfig
    from ltat.methods import Method


@click.command("methods")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead.")
def command(as_json: bool) -> None:
    """List every training method, as the methods' own docstrings tell it, and the settings that all of them take."""
    from ltat.methods import METHODS

    facts = {name: describe(method) for name, method in METHODS.items()}
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, told in facts.items():
        click.echo(f"{name}\n    {told['paper']}")
        for topic in ("attack", "loss", "settings"):
            click.echo(f"    {topic + ':':10}{told[topic] or 'none'}")
    click.echo("every method (its own defaults may differ)")
    for purpose, settings in shared_sections():
        click.echo(f"    {purpose}\n        {settings}")
    click.echo("Any setting: ltat train --method NAME --set section.key=value; all of them: --show-config")


def describe(method: "type[Method]") -> dict[str, str]:
    """Paper, attack, loss and the settings of a method's own."""
    module = inspect.getdoc(inspect.getmodule(method)) or ""
    return {
        "paper": module.partition("\n")[0],
        "attack": attack_of(method.Config),
        "loss": (inspect.getdoc(method) or "").partition("\n")[0],
        "settings": own_settings(method.Config),
    }


def attack_of(config: "type[RunConfig]") -> str:
    """The training attack of a method's defaults in a line; empty where there is none."""
    attack = config.model_fields["attack"].get_default(call_default_factory=True)
    if attack.steps == 0:
        return ""
    radius, step = (f"{255 * value:.4g}/255" for value in (attack.eps, attack.step_size))
    return f"PGD-{attack.steps} on {attack.loss}, eps {radius}, step {step}, start {attack.start}, {attack.mode} mode"


def own_settings(config: "type[RunConfig]") -> str:
    """The sections that only this method has, with their defaults."""
    from ltat.config import RunConfig

    own = sorted(config.model_fields.keys() - RunConfig.model_fields.keys())
    return ", ".join(section_settings(config, section) for section in own)


def shared_sections() -> "Iterator[tuple[str, str]]":
    """What each section that every method has is for, and its settings with the common defaults."""
    from ltat.config import RunConfig, Section

    for name, field in RunConfig.model_fields.items():
        if isinstance(field.default, Section):
            purpose = (inspect.getdoc(type(field.default)) or "").partition("\n")[0]
            yield purpose.replace("``", ""), section_settings(RunConfig, name)


def section_settings(config: "type[RunConfig]", section: str) -> str:
    """The settings of one section, as they would be written after ``--set``."""
    defaults = config.model_fields[section].get_default(call_default_factory=True)
    return ", ".join(
        f"{section}.{key}={shown(value)}"
        for key, value in defaults.model_dump(mode="json", by_alias=True).items()
        if not isinstance(value, dict)
    )


def shown(value: Any) -> str:
    """A default as it would be written after ``--set``."""
    return "unset" if value is None else value if isinstance(value, str) else json.dumps(value)
