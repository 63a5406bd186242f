import pytest


def slow(*values):
    """Returns a test's parameters that only the slower tier meets."""
    return pytest.param(*values, marks=pytest.mark.slow)
