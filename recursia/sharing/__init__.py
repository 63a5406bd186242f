"""Parameter sharing across depth: the weights and the keys that each step uses."""
