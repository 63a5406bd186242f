import pytest


def slow(*values):
    """Returns parameters of a test that only the slow tier runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


def exhaustive(*values):
    """Returns parameters of a test that CI leaves out: more cases of what it runs a few of."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)
