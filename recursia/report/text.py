"""Held-out text, whose tokens are coloured by their recursions and by their surprise."""

import numpy as np
from markupsafe import Markup, escape

from recursia.report.panels import Panel
from recursia.report.reading import KINDS, Reading

TOKENS = 700  # that are shown
_MOST = 6.0  # nats of surprise with the darkest colour
_LEVELS = 8  # of a colour
_INCOMPLETE, _END = "\u00b7", "\u25c6"


def panel(reading: Reading) -> Panel:
    """Returns the first tokens that were read: twice if their recursions differ, else once."""
    here = np.argwhere(reading.is_token)[:TOKENS]  # rows follow each other in the text
    rows, places = here.T
    depth, before = reading.depth_used[rows, places], reading.nats[rows, places]
    surprise = np.concatenate([[np.nan], before[:-1]])
    shown = [_shown(reading, row, at) for row, at in here]
    told = [
        f"{text.strip() or 'space'} \u2014 surprise {nats:.2f} nats, recursions {used}"
        for text, nats, used in zip(shown, surprise, depth, strict=True)
    ]
    by_surprise = np.nan_to_num(np.minimum(surprise / _MOST, 1)) * (_LEVELS - 1)
    sides = [("surprise", "Surprise", "s", by_surprise, f"0 to {_MOST:.0f} nats and more")]
    if reading.has_choice:
        low, high = depth.min(), max(depth.max(), depth.min() + 1)
        by_depth = (depth - low) / (high - low) * (_LEVELS - 1)
        sides.insert(0, ("depth", "Recursions", "d", by_depth, f"{low} to {high}"))
    made = [_side(shown, told, *side) for side in sides]
    caption = "Point at a token, or tap it, to read its numbers."
    html = Markup('<div class="texts">{}</div><output class="told">{}</output>').format(
        Markup("").join(made), caption
    )
    about = (
        "The first tokens of the validation text. Surprise is what the token cost to predict; the "
        "recursions are those spent on reading it, to predict the next."
    )
    title = "Text by recursions and surprise" if reading.has_choice else "Text by surprise"
    return Panel("text", title, about, html=html)


def _shown(reading: Reading, row: int, at: int) -> str:
    text = reading.pieces[row][at]
    if not text:
        is_end = KINDS[reading.kinds[row, at]] == "end of text"
        return _END if is_end else _INCOMPLETE
    return text.replace("\r", "").replace("\n", "\u21b5\n")


def _side(
    shown: list[str], told: list[str], name: str, title: str, scale: str, levels: np.ndarray,
    about: str,
) -> Markup:  # fmt: skip
    spans = Markup("").join(
        Markup('<span class="{}{}" title="{}">{}</span>').format(scale, round(level), why, text)
        for text, why, level in zip(shown, told, levels.tolist(), strict=True)
    )
    key = Markup("").join(
        Markup('<span class="{}{}">\u2002</span>').format(scale, level) for level in range(_LEVELS)
    )
    head = Markup("<h4>{} <small>{} {}</small></h4>").format(title, key, escape(about))
    return Markup('<div class="text" data-side="{}">{}<p>{}</p></div>').format(name, head, spans)
