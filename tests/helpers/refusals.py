"""What an error must say, however it says it."""

import contextlib

import pytest


@contextlib.contextmanager
def refused(kind, *parts):
    """Expects an error of one line that names every part: field, numbers and remedy."""
    with pytest.raises(kind) as caught:
        yield caught
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


def assert_one_line(err, *parts):
    """Asserts that a command said one line and no traceback, with every part named."""
    assert err.startswith("recursia: ") and err.count("\n") == 1 and err.endswith("\n"), err
    for part in parts:
        assert str(part) in err, err
