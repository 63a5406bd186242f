"""A run's directory: its configuration, its checkpoints, and its trained model."""
