"""A block with factors of stream and branch, and a thin MLP after it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, config
from recursia.architecture import Model
from recursia.blocks.pre_norm import PreNorm
from recursia.blocks.scaled_residual import ScaledResidual
from recursia.depth.fixed import Fixed
from recursia.layers.attention import Context
from tests.helpers import by_hand
from tests.helpers.flops import assert_exact
from tests.helpers.tiny import BLOCK, VOCAB, assert_close, draw, forward, is_equal, text

PARTS = (BLOCK.embed_dim, BLOCK.mixer, BLOCK.feedforward)
PRIVATE = (("thin_mlp", "recursion+block"), ("thin_residual", "recursion+block"))


def build(block, varies=PRIVATE):
    """Returns two blocks, each applied twice in a row."""
    return Model(4, block, Fixed(2), sharing="sequence", varies=varies, vocab_size=VOCAB)


def test_unit_factors_without_a_thin_mlp_are_the_plain_block():
    made = build(ScaledResidual(*PARTS, thin_ratio=0), varies=())
    params = draw(made)
    core = dict(params["core"])
    ones = jax.tree.map(np.ones_like, core.pop("residual"))
    unit = {**params, "core": {**core, "residual": ones}}
    plain = forward({**params, "core": core}, text(), build(PreNorm(*PARTS), varies=()))
    assert is_equal(forward(unit, text(), made)[0], plain[0])
    assert not is_equal(forward(params, text(), made)[0], plain[0])


def test_a_block_is_its_equation():
    block = ScaledResidual(*PARTS, thin_ratio=0.5)
    made = dataclasses.replace(build(block), num_layers=2)
    weights = by_hand.pick(draw(made)["core"], 0)
    row, where = np.random.default_rng(0).normal(size=(5, 16)), np.array([range(5), [1] * 5])
    context = Context(jnp.arange(5)[None], is_row=True)
    narrow = jax.tree.map(jnp.float32, weights)
    ours, _, _ = jax.jit(block.apply)(narrow, jnp.float32(row[None]), context)

    def branch(x, silent):
        """Returns what one branch adds, with the matrices of the other at zero."""
        zero = {silent: jax.tree.map(np.zeros_like, weights[silent])}
        return by_hand.block({**weights, **zero}, x, where, block)[0] - x

    (a1, a2), (a3, a4) = weights["residual"]["attention"], weights["residual"]["mlp"]
    x = a1 * row + a2 * branch(row, "mlp")
    x = a3 * x + a4 * branch(x, "attention")
    thin, (b1, b2) = weights["thin_mlp"], weights["thin_residual"]
    h = by_hand.norm(x, thin["norm"], block.norm_eps)
    hidden = by_hand.gelu(h @ thin["up"] + thin["up_bias"])
    assert hidden.shape == (5, 8)
    assert_close(ours[0], b1 * x + b2 * (hidden @ thin["down"] + thin["down_bias"]), n=512)


def test_parameters_are_those_of_the_blocks_and_a_thin_mlp_for_each_step():
    steps, blocks, d = 4, 2, 16
    plain = accounting.unique_parameters(build(PreNorm(*PARTS), varies=()))
    thin = d + 2 + d * d + d + d * d + d  # norm, factors, two matrices with their biases
    made = build(ScaledResidual(*PARTS))
    assert accounting.unique_parameters(made) == plain + 4 * blocks + steps * thin
    assert_exact(made, seq_len=7)


def test_the_preset_repeats_blocks_in_place_with_private_thin_mlps():
    made = config.load("sret:tiny", {}).model
    assert made.schedule.order == "sequence" and made.schedule.num_recursions == 2
    assert made.schedule.size("thin_mlp") == 8 and made.schedule.size("residual") == 4


def test_a_negative_ratio_is_refused():
    with pytest.raises(ValueError, match="thin_ratio: got -1"):
        ScaledResidual(*PARTS, thin_ratio=-1)
