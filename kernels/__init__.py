"""Kernels for recursion over some of the tokens: select, gather, scatter, attend, multiply groups.

Each op is a folder with its public function, a reference that is also the path on a CPU, and the
kernels for TPU and GPU. Nothing here imports the rest of recursia.
"""
