"""What blocks are made of; axis letters are those of `jax.nn.dot_product_attention`."""
