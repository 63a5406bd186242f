"""Shipped sweeps: one file per question about models that share weights across depth."""
