"""Embeddings of positions from a table, and layers without biases beside them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, config, model, settings
from recursia.embeddings.learned_positions import LearnedPositions
from recursia.errors import ConfigError
from recursia.feedforward.gelu import GELU
from recursia.layers import norm
from recursia.layers.attention import Context
from recursia.parameterisations.parameterisation import group
from tests.helpers import by_hand
from tests.helpers.refusals import refused
from tests.helpers.runs import values, write_text
from tests.helpers.tiny import LENGTH, assert_close, draw, forward, text, tiny

LEARNED = LearnedPositions(num_positions=LENGTH + 2, first_position=2, scale=3.0)


def build(embed=LEARNED):
    return dataclasses.replace(tiny(), embed=embed)


def test_an_embedding_is_its_equation():
    weights, ids = draw(build())["embed"], np.asarray(text())
    places = np.stack([np.arange(LENGTH), np.arange(LENGTH)[::-1]])
    hand = 3 * (weights["table"][ids] + weights["positions"][places + 2])
    ours, past = LEARNED.embed(weights, text(), Context(jnp.asarray(places)), jnp.float32)
    assert past is None
    assert_close(ours, hand)


def test_positions_are_stored_and_no_product_nor_matrix():
    made, plain = build(), tiny()
    more = (LENGTH + 2) * 16
    for count in (accounting.unique_parameters, accounting.applied_parameters):
        assert count(made) - count(plain) == more
    assert accounting.sixn_flops_per_token(made) == accounting.sixn_flops_per_token(plain)
    spec = model.specs(made)["embed"]["positions"]
    assert spec.matrix is None and spec.is_decayed and group(spec) == "input"


def test_a_row_longer_than_the_table_is_refused():
    made = build()
    states = lambda length: jax.eval_shape(lambda: forward(draw(made), text(length=length), made))
    assert states(LENGTH)[0].shape[1] == LENGTH
    with refused(ValueError, "model.embed.num_positions: 14", "13 tokens", "take 15", "of 12"):
        states(LENGTH + 1)


def test_training_on_longer_sequences_is_refused(tmp_path):
    write_text(tmp_path)
    embed = {"kind": "learned_positions", "num_positions": 16}
    given = values(tmp_path, "fixed", model={"embed": embed})
    assert config.build(settings.Run, given, "config").train.seq_len == 16
    given["train"]["seq_len"] = 17
    with refused(ConfigError, "config.model.embed.num_positions: 16", "17 tokens", "take 17"):
        config.build(settings.Run, given, "config")


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"num_positions": 0}, ("num_positions: got 0",)),
        ({"first_position": 14}, ("first_position: got 14", "13")),
        ({"position": "halves"}, ("position: 'halves'", "take 'none'")),
    ],
    ids=str,
)
def test_fields_that_contradict_each_other_are_refused(fields, parts):
    with refused(ValueError, *parts):
        dataclasses.replace(LEARNED, **fields)


def test_layers_without_biases_are_those_whose_biases_are_zero():
    with_bias, without = GELU(24), GELU(24, has_bias=False)
    weights = draw(dataclasses.replace(tiny(), block=_block(with_bias)))["core"]["mlp"]
    weights = {name: leaf[0] for name, leaf in weights.items()}
    bare = {name: leaf for name, leaf in weights.items() if not name.endswith("bias")}
    assert bare.keys() == without.specs(16, 2)["mlp"].keys()
    zeroed = {n: jnp.zeros_like(w) if n.endswith("bias") else w for n, w in weights.items()}
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 16)), jnp.float32)
    ours, _ = without.apply({"mlp": bare}, x, x, Context(jnp.zeros((2, 3), jnp.int32)))
    theirs, _ = with_bias.apply({"mlp": zeroed}, x, x, Context(jnp.zeros((2, 3), jnp.int32)))
    assert_close(ours, theirs)
    assert norm.specs("unbiased_layer", 16).keys() == {"scale"}
    scale = {"scale": x[0, 0]}
    hand = by_hand.layer_norm(x, scale | {"bias": 0.0}, 1e-5)
    assert_close(norm.normalise(x, scale, 1e-5), hand)


def _block(feedforward):
    return dataclasses.replace(tiny().block, feedforward=feedforward)
