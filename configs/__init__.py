"""Shipped configurations: one file per published system, its sizes as presets."""
