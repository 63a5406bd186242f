"""The laws that every model obeys, tried on one; `recursia laws` prints what `check` yields.

A law is a statement about any point on the axes, such as that no logit depends on a later token.
The tests hold them for every kind that is shipped, and this package for a user's own.
"""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

from recursia import dotted
from recursia.architecture import Model
from recursia.laws.numbers import draw
from recursia.laws.statements import LAWS, VOCAB


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a model obeys a law.

    Attributes:
      law: its name.
      meaning: the law, in a sentence.
      wrong: what is wrong; "" if nothing is, None where the law has no case.
    """

    law: str
    meaning: str
    wrong: str | None

    def __str__(self) -> str:
        """Returns one line: the law, whether it holds, and what is wrong."""
        found = "has no case" if self.wrong is None else "BROKEN: " if self.wrong else "holds"
        return f"{self.law:<18} {found}{self.wrong or ''}"


def check(config: Model, seed: int = 0) -> Iterator[Verdict]:
    """Yields a verdict for each law, on random parameters and tokens.

    The model is tried in float32 with 32 tokens in its vocabulary, on 2 rows of 12 tokens. What it
    raises breaks the law.

    Args:
      config: the model; a small one takes seconds for each law.
      seed: of the parameters.

    Example:
      >>> import recursia
      >>> from recursia import laws
      >>> config = recursia.preset("looped:tiny").config
      >>> print(next(laws.check(config)))
      parameters         holds
    """
    config = dataclasses.replace(config.sized(VOCAB), dtype="float32")
    weights = draw(config, seed, std=0.3 * min(1.0, 4 * config.block.embed_dim**-0.5))
    for name, law in LAWS.items():
        try:
            wrong = law(config, weights)
        except Exception as error:  # a user's class may raise anything
            wrong = _raised(error, config)
        yield Verdict(name, inspect.getdoc(law) or "", wrong)


def _raised(error: Exception, config: Model) -> str:
    """Returns an exception in one line, with the line of the part of the model that raised it."""
    block = config.block
    parts: tuple[Any, ...] = config.depth, config.weights, block.mixer, block.feedforward, block
    parts += (config.end_block.feedforward,)
    lines = [dotted.raised(error, _file(type(part))) for part in parts]
    return max(lines, key=lambda line: line.startswith("line "))


def _file(cls: type) -> str:
    """Returns the file of a class; "" for one that was typed in a notebook, and has none."""
    try:
        return inspect.getfile(cls)
    except (OSError, TypeError):
        return ""
