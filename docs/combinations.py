"""Writes docs/combinations.md: which pairs of axes go together, and why the others do not.

  python -m docs.combinations

Every pair of values of two axes is built, with one value for each other axis; a pair is illegal if
the code refuses it, and the error is the reason.
"""

import itertools
import pathlib

from tests.helpers import points

PAGE = pathlib.Path(__file__).with_name("combinations.md")
AXES = {
    "block": ("block_", points.BLOCKS),
    "mixer": ("mixer", points.MIXERS),
    "feedforward": ("feedforward", points.FEEDFORWARDS),
    "depth": ("depth_", points.DEPTHS),
    "sharing": ("sharing", points.PATTERNS),
    "keys and values": ("kv_sharing", ("own", "first_recursion", "first_recursion replayed")),
    "weights": ("weights", points.WEIGHTS),
    "parameterisation": ("parameterisation", points.PARAMETERISATIONS),
    "embed": ("embed_", points.EMBEDS),
    "inject": ("inject_", tuple(points.INJECTS)),
    "parallel": ("copies", tuple(points.COPIES)),
    "loop_norm": ("loop_norm", ("none", "each", "last")),
    "ends": ("ends", ("alike", "swiglu", "glu_moe", "lagged_moe")),
}
INTRODUCTION = """# What goes together

A model is a point on the axes block (its arrangement), mixer, feedforward, depth, sharing, keys and
values, weights, parameterisation, embed, inject, parallel, loop_norm and ends (the feed-forward of
prelude and coda). This page is written by `python -m docs.combinations`, which builds every pair of
values; for ends whose feed-forward is not that of the core a few kinds stand for all, and a model
without ends has a prelude then. The other axes have the values
block `pre_norm`, mixer `grouped_query`, feedforward `swiglu`, depth `fixed` and sharing `cycle`;
depth `recurrent` is given the core's input unless the pair says otherwise, and a mixer that uses
experts a feedforward with some. Numbers in parentheses refer to the reasons below.
`first_recursion replayed` shares queries and keys instead of keys and values (`kv.reads`). One test
compares the page with the code, and another draws points from all axes at once.

"""


def refusal(**choices: str) -> str | None:
    """Returns why a point is refused, or None if it is legal."""
    try:
        points.point(**{"block_": "pre_norm", **choices})
    except ValueError as error:
        return str(error)
    return None


def page() -> str:
    """Returns the page."""
    reasons: dict[str, int] = {}
    tables, plain = [], []
    for (one, (field, rows)), (other, (across, columns)) in itertools.combinations(AXES.items(), 2):
        cells = {(a, b): refusal(**{field: a, across: b}) for a in rows for b in columns}
        if not any(cells.values()):
            plain.append(f"{one} and {other}")
            continue
        for why in filter(None, cells.values()):
            reasons.setdefault(why, len(reasons) + 1)
        show = lambda why: "yes" if why is None else f"({reasons[why]})"
        lines = [f"## {one} and {other}", "", f"| | {' | '.join(columns)} |"]
        lines += ["|---" * (len(columns) + 1) + "|"]
        lines += [f"| {a} | " + " | ".join(show(cells[a, b]) for b in columns) + " |" for a in rows]
        tables.append("\n".join(lines))
    every = f"Any two values can be combined for these pairs of axes: {'; '.join(plain)}.\n\n"
    numbered = "\n".join(f"{number}. {why}" for why, number in reasons.items())
    return INTRODUCTION + every + "\n\n".join(tables) + "\n\n## Reasons\n\n" + numbered + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
