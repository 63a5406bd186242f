"""Who owns the weights of a step."""
