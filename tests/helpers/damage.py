"""Files that no writer writes, and the law of who reads them."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from recursia.errors import UserError

EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True, database=None)
STRANGE = (None, True, -1, 0, 1 << 31, 1 << 70, 1e999, 0.5, "", "O", "../outside", "\ud800", [], {})


def places(value, path=()):
    """Returns the path of every value inside a JSON value."""
    value = dict(enumerate(value)) if isinstance(value, list) else value
    inner = value.items() if isinstance(value, dict) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


def replaced(value, path, new):
    """Returns a JSON value in which another stands at a path."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@st.composite
def damaged(draw, text):
    """Draws a JSON text with a value replaced or taken out, or with bytes changed."""
    whole = json.loads(text)
    how = draw(st.sampled_from(("replace", "replace", "remove", "bytes", "cut")))
    if how == "replace":
        path = draw(st.sampled_from(places(whole)))
        return json.dumps(replaced(whole, path, draw(st.sampled_from(STRANGE)))).encode()
    if how == "remove":
        *path, last = draw(st.sampled_from(places(whole)[1:]))
        inner = whole
        for key in path:
            inner = inner[key]
        del inner[last]
        return json.dumps(whole).encode()
    return draw(broken(text.encode(), how))


@st.composite
def broken(draw, raw, how="bytes"):
    """Draws bytes with a few of them changed, or without their end."""
    raw = bytearray(raw)
    if how == "cut":
        return bytes(raw[: draw(st.integers(0, len(raw) - 1))])
    for _ in range(draw(st.integers(1, 4))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw)


def either(raw):
    """Draws bytes with a few of them changed or without their end."""
    return st.one_of(broken(raw), broken(raw, "cut"))


def reads(call):
    """Calls a reader, which may refuse in one line and may do nothing else."""
    try:
        call()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000


def fuzz(strategy, path, call):
    """Writes what is drawn to a file and reads it, time and again."""

    @EXAMPLES
    @given(strategy)
    def one(raw):
        path.write_bytes(raw)
        reads(call)

    one()
