"""Methods in a user's file outside the package: ``path/to/file.py:MyMethod``."""

import hashlib
import inspect
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from ltat.config import RunConfig, Section
from ltat.config.renamed import former_sections
from ltat.errors import LtatError
from ltat.methods.base import Method

_MARK = ".py:"


def is_user_method(name: str) -> bool:
    """Whether ``name`` is a class in a file and not a method of the package."""
    return _MARK in name


def absolute_method(name: str) -> str:
    """The same method with the absolute path of its file; a name of the package does not change."""
    if not is_user_method(name):
        return name
    path, _, class_name = name.rpartition(":")
    return f"{Path(path).expanduser().absolute()}:{class_name}"


def method_label(name: str) -> str:
    """A short name of a method: its name in the package, or the name of its class."""
    return name.rpartition(":")[2]


def load_user_method(name: str) -> type[Method]:
    """The class that ``path/to/file.py:MyMethod`` names. This executes the file, as ``import`` does.

    Raises:
        LtatError: no such file or class, a file that fails, or a class that is not a ``Method``, has no ``Config``,
            changes the sections of :class:`ltat.config.RunConfig`, or has other hooks than :class:`Method`.
    """
    path, _, class_name = absolute_method(name).rpartition(":")
    found = getattr(_module(Path(path)), class_name, None)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise LtatError(f"{path} has no method {class_name!r}; define `class {class_name}(ltat.methods.Method)` there")
    settings = getattr(found, "Config", None)
    if not (isinstance(settings, type) and issubclass(settings, RunConfig)):
        raise LtatError(
            f"{class_name} in {path} has no settings; give it `Config = ltat.config.RunConfig` or a subclass"
        )
    _check_hooks(found, path)
    for section in _changed_sections(settings):
        raise LtatError(
            f"{class_name} in {path} has a section {section!r} without the settings that every method has there; "
            "subclass that section, or give yours another name"
        )
    for old, new in former_sections(settings).items():
        raise LtatError(f"{class_name} in {path} has a section {old!r}, which is now {new!r}; rename it")
    return found


HOOKS = {
    "loss": ("step",),
    "objective": ("step",),
    "attack": ("step",),
    "prepare_model": ("model",),
    "initialise": ("model",),
    "remarks": ("images",),
    "begin_epoch": ("epoch",),
    "end_step": ("step", "terms"),
    "end_epoch": ("epoch",),
}
"""The arguments that the trainer passes to each hook."""

FORMER_HOOKS = {
    "resolve": "declare the setting as ltat.config.Decided and return its default in Config.by_method",
    "deployed": "build what it adds into the network, in prepare_model",
    "perturbed_weights": "set awp.gamma, or override attack or loss",
    "radius_scale": "override attack and pass the scale to ltat.methods.attacking.training_attack",
    "training_ball": "override attack and pass the threat model to ltat.methods.attacking.training_attack",
}
"""Hooks of earlier versions that are no longer called, and what replaces each."""


def _check_hooks(found: type[Method], path: str) -> None:
    for name, arguments in HOOKS.items():
        signature = inspect.signature(getattr(found, name))
        try:
            signature.bind(None, *arguments)
        except TypeError:
            now = f"{name}({', '.join(('self', *arguments))})"
            carries = ", where step has model, batch, x_adv, epoch, epochs and class_counts" if "step" in now else ""
            raise LtatError(f"{found.__name__} in {path} defines {name}{signature}; define {now}{carries}") from None
    for name, remedy in FORMER_HOOKS.items():
        if hasattr(found, name):
            raise LtatError(f"{found.__name__} in {path} defines {name}(), which is no longer called; {remedy}")


def _changed_sections(settings: type[RunConfig]) -> list[str]:
    """The shared sections that ``settings`` replaces by unrelated classes."""
    changed = []
    for name, shared in RunConfig.model_fields.items():
        kind, own = shared.annotation, settings.model_fields[name].annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            changed += [] if isinstance(own, type) and issubclass(own, kind) else [name]
    return changed


def _module(path: Path) -> ModuleType:
    if not path.is_file():
        raise LtatError(f"there is no file {path}; name your method as path/to/file.py:MyMethod")
    # Registered under a unique name, so that a second load returns the same class.
    name = f"ltat_user_method_{hashlib.sha256(bytes(path)).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a path that ends in .py always has both
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        reason = " ".join(str(error).split())  # pydantic's have several lines
        raise LtatError(f"{path} cannot be imported ({type(error).__name__}: {reason}); correct it") from error
    return module
