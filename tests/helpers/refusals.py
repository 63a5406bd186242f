"""What an error must say, however it says it."""

import contextlib

import pytest


@contextlib.contextmanager
def refused(kind, *parts):
    """Expects an error of one line that names every part: field, numbers and remedy."""
    with pytest.raises(kind) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message
