"""Embeddings of waves of the token's id, without a table."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting
from recursia.embeddings.table import Table, waves
from recursia.layers.attention import Context
from recursia.sharing.remat import KEEP
from tests.helpers import by_hand
from tests.helpers import flops as flat
from tests.helpers.tiny import assert_close, draw, text, tiny

WAVES = Table(is_tied=False, fourier_dim=20)


def build(embed=WAVES):
    return dataclasses.replace(tiny(), embed=embed)


def test_an_embedding_is_its_equation():
    made = build()
    params, ids = draw(made)["embed"], np.asarray(text())
    assert "table" not in params
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = 2 * ids / (made.vocab_size - 1) - 1
    k = np.arange(1, 9) * np.pi * x[..., None]
    t = np.stack([np.sin(k), np.cos(k)], -1).reshape(*ids.shape, 16)
    hand = t + by_hand.gelu(t @ w["up"] + w["up_bias"]) @ w["down"] + w["down_bias"]
    assert_close(WAVES.embed(params, text(), Context(text()), jnp.float32)[0], hand, n=256)


def test_all_ids_of_a_large_vocabulary_differ():
    rows = np.asarray(waves(jnp.arange(50_000), 50_000, 16))
    assert len(np.unique(rows, axis=0)) == 50_000


@pytest.mark.parametrize("factor_dim", [0, 6])
def test_costs_are_exact(factor_dim):
    embed = dataclasses.replace(WAVES, factor_dim=factor_dim)
    made = dataclasses.replace(flat.tiny(is_tied=False), embed=embed)
    batch = lambda cost: flat.BATCH * cost
    assert batch(accounting.forward_flops(made, 7)) == flat.traced(lambda f: f, made, 7)
    both = flat.traced(jax.value_and_grad, made, 7)
    assert batch(accounting.executed_training_flops(made, 7, KEEP)) == both
    width = factor_dim or 8
    untied = dataclasses.replace(made, embed=dataclasses.replace(embed, fourier_dim=0))
    mlp, table = 2 * width * 20 + 20 + width, flat.VOCAB * width
    count = accounting.unique_parameters
    assert count(made) == count(untied) - table + mlp


def test_a_head_that_is_the_table_is_refused():
    with pytest.raises(ValueError, match="fourier_dim: 20 has no table that the head could be"):
        Table(fourier_dim=20)
