"""Sweeps: many trials of one declaration, run anywhere, and known by their directories alone.

A configuration file declares its sweep beside its `get_config`, with what is imported from here.
"""

from recursia.sweep.grids import log_uniform, product, sample, uniform, zip
from recursia.sweep.search import Search

__all__ = ["Search", "log_uniform", "product", "sample", "uniform", "zip"]
