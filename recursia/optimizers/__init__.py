"""Optimizers: update rules from gradients to steps, one file each, all on `optimizer.Optimizer`."""
