"""Verbs that show what there is: presets, fields."""

import argparse


def presets(options: argparse.Namespace) -> None:
    """Prints the shipped configurations, or the presets of one."""


def fields(options: argparse.Namespace) -> None:
    """Prints every field of a configuration."""
