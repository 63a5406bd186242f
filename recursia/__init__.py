"""Pretraining of language models whose depth is made by using the same weights again.

`load` and `preset` return a `LanguageModel`, and `command` runs what one would type in a shell;
docs/python.md shows what they can do.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recursia.cli import command
    from recursia.language_model import LanguageModel
    from recursia.loaded import load, preset
    from recursia.prediction import Prediction

__all__ = ["LanguageModel", "Prediction", "command", "load", "preset"]
_MODULES = {
    "LanguageModel": "language_model",
    "Prediction": "prediction",
    "command": "cli",
    "load": "loaded",
    "preset": "loaded",
}


def __getattr__(name: str) -> Any:
    """Imports what a name stands for when it is first used: jax takes seconds."""
    if name not in _MODULES:
        raise AttributeError(f"module 'recursia' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"recursia.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
