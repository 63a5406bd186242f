"""What each attribute of a class means, as its docstring says it."""

import inspect
import re


def meanings(cls: type) -> dict[str, str]:
    """Returns what the docstring of a class, or of one it is made from, says of each attribute."""
    found = {}
    for one in reversed(cls.__mro__):
        about = inspect.cleandoc(one.__doc__ or "").partition("Attributes:\n")[2]
        for name, meaning in re.findall(r"^  (\w+): (.*(?:\n    .*)*)", about, re.MULTILINE):
            found[name] = " ".join(meaning.split())
    return found
