"""What the backward pass of a block stores without rematerialisation."""

import jax
import jax.numpy as jnp

from recursia import params
from recursia.layers.attention import Context
from tests.helpers.flops import BLOCK


def test_a_gated_feed_forward_stores_its_two_inner_products_and_nothing_else_of_their_width():
    weights = params.init(BLOCK.specs(1), jax.random.key(0))
    place = jnp.zeros((2, 5), jnp.int32)
    apply = lambda w, x: BLOCK.apply(w, x, Context(place, place))[0]
    _, backward = jax.vjp(apply, weights, jnp.ones((2, 5, BLOCK.embed_dim)))
    shapes = [leaf.shape for leaf in jax.tree.leaves(backward)]
    wide = [s for s in shapes if s[-1:] == (BLOCK.feedforward.mlp_dim,) and len(s) > 1]
    assert len([s for s in wide if s[0] != BLOCK.embed_dim]) == 2, wide
