import pytest


def slow(*values):
    """Returns parameters of a test that only the slow tier runs."""
    return pytest.param(*values, marks=pytest.mark.slow)
