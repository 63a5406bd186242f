"""The shipped presets, and one of each system among them."""

import re

from recursia import config

FILES = config.shipped()
PRESETS = [preset for name in FILES for preset in config.presets(name)]
TINY = [name for name in PRESETS if name.partition(":")[2].startswith("tiny")]


def kinds(name):
    """Returns a preset's model without its sizes: those that have the same are one system."""
    size = r"(?<!num_copies=)\b\d[\d.e-]*(, \d[\d.e-]*)*"
    return re.sub(size, "", repr(config.load(name, {}).model))


def firsts(names):
    """Returns the first preset of each system among these."""
    return list({kinds(name): name for name in reversed(names)}.values())[::-1]


SYSTEMS, COSTED = firsts(TINY), firsts(PRESETS)
