"""Layers of blocks; axis letters are those of `jax.nn.dot_product_attention`."""
