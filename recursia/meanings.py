"""The meanings of a class's attributes, from the section `Attributes` of its docstring."""

import inspect
import re


def meanings(cls: type) -> dict[str, str]:
    """Returns the meaning of each attribute of a class and of its base classes, by name."""
    by_name = {}
    for base in reversed(cls.__mro__):
        section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for name, meaning in re.findall(r"^  (\w+): (.*(?:\n    .*)*)", section, re.MULTILINE):
            by_name[name] = " ".join(meaning.split())
    return by_name
