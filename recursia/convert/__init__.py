"""Initialises models from other models, and reads the checkpoints of the authors' code."""
