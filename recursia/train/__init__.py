"""One step and one loop, for every model."""
