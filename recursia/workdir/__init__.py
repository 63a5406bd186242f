"""A run's directory: its files, its checkpoints, and the model that they hold."""
