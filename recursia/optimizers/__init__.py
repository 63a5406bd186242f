"""Optimizers, one file each: what turns gradients into a step, on a base of what all do alike."""
