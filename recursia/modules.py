"""Subclasses that are found by the names of their modules, so that a new one is one file.

A module beside that of a base class holds at most one subclass of it.
"""

import functools
import importlib
import pkgutil


@functools.cache
def names(base: type) -> tuple[str, ...]:
    """Returns the modules beside a base class that hold a subclass, in alphabetical order."""
    package = importlib.import_module(package_of(base))
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    return tuple(sorted(name for name in modules if subclass(base, name)))


def subclass(base: type, name: str) -> type | None:
    """Returns the subclass that a module beside a base class holds; None if there is none."""
    try:
        module = importlib.import_module(f"{package_of(base)}.{name}")
    except ModuleNotFoundError:
        return None
    classes = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base)]
    return next((c for c in classes if c is not base and c.__module__ == module.__name__), None)


def package_of(base: type) -> str:
    """Returns the package of a base class's module."""
    return base.__module__.rpartition(".")[0]
