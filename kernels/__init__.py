"""Kernels for routed tokens: attention and grouped matmul.

Each op is a folder with its public function, a reference that runs on a CPU, and the kernels for
TPU and GPU. Nothing here imports the rest of recursia.
"""
