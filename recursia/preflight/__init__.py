"""Predicts memory and speed of a run from its program, compiled ahead of time."""
