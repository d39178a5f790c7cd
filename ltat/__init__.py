"""Adversarial training on long-tailed data: robust also on the rare classes."""

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {"load_model": "ltat.models", "evaluate": "ltat.evaluation", "LtatError": "ltat.errors"}
_SUBPACKAGES = ("attacks", "data", "errors", "evaluation", "methods", "models", "ops", "training")


def __getattr__(name: str) -> Any:
    # Loading on first use keeps `import ltat` and `ltat --help` free of torch's start-up time.
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"ltat.{name}")
    raise AttributeError(f"module 'ltat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY, *_SUBPACKAGES])
