"""Parameterisations: tables from the size of a model to scales, all on `Parameterisation`."""
