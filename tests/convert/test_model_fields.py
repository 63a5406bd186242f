"""What imported models have besides: soft caps, norms of heads, longer wavelengths, GEGLU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recursia import accounting, losses, model, params
from recursia.embeddings.table import Table
from recursia.kernels.routed_attention import routed_attention
from recursia.layers.rotary import rotate
from recursia.layers.stretch import Stretch
from tests.helpers import blocks
from tests.helpers.flops import assert_exact
from tests.helpers.flops import tiny as counted
from tests.helpers.tiny import assert_close, draw, forward, is_equal, normal, text, tiny


def plain(query, key, value, cap, window):
    """Attention written out."""
    key, value = (jnp.repeat(x, 2, axis=2) for x in (key, value))
    scores = jnp.einsum("btnh,bsnh->bnts", query, key) / 2
    scores = cap * jnp.tanh(scores / cap)
    behind = jnp.arange(7)[:, None] - jnp.arange(7)
    seen = (behind >= 0) & ((behind < window) | (window == 0))
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
    return jnp.einsum("bnts,bsnh->btnh", weights, value)


@pytest.mark.parametrize("window", [0, 3])
def test_capped_attention_and_its_gradient_are_the_formula(window):
    arrays = normal(2, 7, 4, 4), normal(2, 7, 2, 4, seed=1), normal(2, 7, 2, 4, seed=2)
    ours = lambda *x: routed_attention(*x, cap=0.7, window=window)
    theirs = lambda *x: plain(*x, 0.7, window)
    assert_close(ours(*arrays), theirs(*arrays))
    square = lambda f: jax.grad(lambda *x: (f(*x) ** 2).sum(), (0, 1, 2))(*arrays)
    assert_close(square(ours), square(theirs))


def test_a_large_cap_is_none():
    arrays = normal(2, 7, 4, 4), normal(2, 7, 2, 4, seed=1), normal(2, 7, 2, 4, seed=2)
    assert_close(routed_attention(*arrays, cap=1e4), routed_attention(*arrays), 512)


def test_capped_logits_and_the_gradient_of_their_loss_are_the_formula():
    config = dataclasses.replace(tiny(), embed=Table(False, logit_cap=0.5))
    weights, hidden, targets = draw(config), normal(2, 8, 16), text(length=8)

    def chunked(hidden, embed):
        head = config.embed.head(embed)
        return losses.cross_entropy(hidden, head, targets, jnp.ones((2, 8)), 3)[0]

    def whole(hidden, embed):
        scores = jnp.einsum("btd,vd->btv", hidden, embed["head"])
        capped = 0.5 * jnp.tanh(scores / 0.5)
        return optax.softmax_cross_entropy_with_integer_labels(capped, targets).sum()

    arguments = hidden, weights["embed"]
    grad = lambda f: jax.value_and_grad(f, (0, 1))(*arguments)
    (ours, (h, embed)), (theirs, (h_, embed_)) = grad(chunked), grad(whole)
    assert_close((ours, h, embed["head"]), (theirs, h_, embed_["head"]))
    assert float(jnp.abs(forward(weights, targets, config)[0]).max()) < 0.5


def test_wavelengths_are_stretched_where_they_are_long():
    waves = jnp.array([0.5, 4.0, 100.0])
    assert np.array_equal(Stretch(4.0).of(waves), waves * 4)
    some = Stretch(4.0, original_length=32, low=1.0, high=4.0).of(waves)
    assert some[0] == 0.5 and some[2] == 400.0  # fits 10 times, and 0.05 times
    assert 4.0 < some[1] < 16.0  # 1.3 times
    x, where = normal(1, 5, 2, 8), jnp.arange(5)[None]
    assert is_equal(rotate(x, where, 1e4, stretch=Stretch()), rotate(x, where, 1e4))
    halved = rotate(x, 2 * where, 1e4, stretch=Stretch(2.0))
    assert_close(halved, rotate(x, where, 1e4))


def test_norms_of_heads_leave_no_scale():
    """A query's scale does nothing, and neither does a key's."""
    config = dataclasses.replace(tiny(), block=blocks.altered(tiny().block, head_norm_eps=0.0))
    weights = draw(config)
    attention = weights["core"]["attention"]
    scaled = {**attention, "query": 3 * attention["query"], "key": 0.1 * attention["key"]}
    other = {**weights, "core": {**weights["core"], "attention": scaled}}
    assert_close(forward(weights, text(), config)[0], forward(other, text(), config)[0], 512)


def test_every_new_parameter_and_product_is_counted():
    fields = dict(has_bias=True, has_value_bias=True, head_norm_eps=1e-6, score_cap=2.0)
    block = blocks.altered(counted().block, **fields)
    config = dataclasses.replace(counted(), block=block)
    assert_exact(config)
    # Per block: biases of 4 and of 2 and 2 heads of 6 and of 8 outputs, and two norms of 6.
    more = 2 * ((4 + 2 + 2) * 6 + 8 + 12)
    assert params.count(model.specs(config)) == params.count(model.specs(counted())) + more
    without = dataclasses.replace(config, block=blocks.altered(block, has_out_bias=False))
    unique = accounting.unique_parameters
    assert unique(without) == unique(config) - 2 * 8


@pytest.mark.parametrize(
    "fields",
    [{"score_cap": -1.0}, {"score_scale": 0.0}, {"head_norm_eps": -1.0}],
)
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        blocks.altered(tiny().block, **fields)
    with pytest.raises(ValueError, match="logit_cap"):
        Table(logit_cap=-1.0)
    with pytest.raises(ValueError, match="high"):
        Stretch(low=2.0, high=2.0)
