"""Memory layers: few values of a table that all steps share, found exactly by product keys."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, model
from recursia.architecture import Model
from recursia.blocks.pre_norm import PreNorm
from recursia.depth.fixed import Fixed
from recursia.feedforward.product_keys import ProductKeys
from recursia.feedforward.rank_one_experts import RankOneExperts
from recursia.layers import product_keys
from recursia.layers.attention import Context
from recursia.mixers.grouped_query import GroupedQuery
from recursia.optimizers.adamw import AdamW
from tests.helpers.flops import assert_exact
from tests.helpers.tiny import VOCAB, assert_close, draw, forward, gradient, text

D, V, N, K, HEADS, TOP = 16, 12, 5, 6, 2, 3
SIZES = dict(num_keys=N, key_dim=K, retrieval_heads=HEADS, top_k=TOP)
KINDS = {"values": ProductKeys(value_dim=V, **SIZES), "experts": RankOneExperts(**SIZES)}
KIND = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def build(kind, sharing="cycle", **options):
    """Returns three recursions of two blocks."""
    block = PreNorm(D, GroupedQuery(num_heads=2, num_kv_heads=1, head_dim=4), kind)
    return Model(6, block, Fixed(3), sharing=sharing, vocab_size=VOCAB, **options)


def by_hand(weights, h):
    """Returns what each token [T D] gives, in float64, with all keys compared."""
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), weights)
    keys, table = weights["memory_keys"], weights["memory_values"]
    queries = np.einsum("td,dnsh->tnsh", h, keys["query"]) + keys["query_bias"]
    halves = np.einsum("tnsh,nsmh->tnsm", queries, keys["keys"])
    scores = (halves[:, :, 0, :, None] + halves[:, :, 1, None, :]).reshape(len(h), HEADS, N * N)
    best = np.argsort(-scores, -1)[..., :TOP]
    p = np.exp(np.take_along_axis(scores, best, -1))
    p /= p.sum(-1, keepdims=True)
    if isinstance(table, dict):
        z = np.einsum("td,tnkd->tnk", h, table["up"][best])
        erf = np.asarray(jax.scipy.special.erf(jnp.asarray(z / np.sqrt(2))))
        return np.einsum("tnk,tnkd->td", p * z * (1 + erf) / 2, table["down"][best]), best
    rest = weights["memory_output"]
    gate = h @ rest["gate"] + rest["gate_bias"]
    m = np.einsum("tnk,tnkv->tv", p, table[best])
    return (m * gate / (1 + np.exp(-gate))) @ rest["out"] + rest["out_bias"], best


@KIND
def test_it_is_the_equation(kind):
    weights = jax.tree.map(lambda leaf: leaf[0], draw(build(kind))["core"])
    h = np.random.default_rng(0).normal(size=(2, 7, D))
    x = jnp.asarray(h, jnp.float32)
    y, _ = kind.apply(weights, x, x, Context(jnp.zeros((2, 7), jnp.int32)))
    wanted, best = by_hand(weights, h.reshape(-1, D))
    assert_close(y.reshape(-1, D), wanted.astype(np.float32))
    found = product_keys.search(x, **weights["memory_keys"], top_k=TOP)
    np.testing.assert_array_equal(found.index.reshape(best.shape), best)


@KIND
@pytest.mark.parametrize("sharing", ["none", "cycle", "sequence"])
def test_all_steps_read_one_table(kind, sharing):
    config = build(kind, sharing)
    core = model.specs(config)["core"]
    assert {s.shape[0] for s in jax.tree.leaves(core["memory_values"])} == {1}
    assert config.schedule.size("memory_keys") == config.schedule.size("attention")
    own = dataclasses.replace(config, varies=(("memory_values", "recursion+block"),))
    count = accounting.unique_parameters
    per_table = sum(np.prod(s.shape) for s in jax.tree.leaves(core["memory_values"]))
    assert count(own) - count(config) == 5 * per_table


@KIND
def test_only_values_that_are_read_have_a_gradient(kind):
    few = build(dataclasses.replace(kind, num_keys=16, top_k=1))
    params = draw(few)
    for table in jax.tree.leaves(gradient(params, text(), few)[1]["core"]["memory_values"]):
        rows = np.abs(table[0]).max(-1) > 0
        assert 0 < rows.sum() <= min(text().size * 6 * HEADS, 16**2 - 1)


def test_values_of_zero_write_the_bias_alone():
    config = build(KINDS["values"])
    params = draw(config)
    core = params["core"] | {"memory_values": jnp.zeros_like(params["core"]["memory_values"])}
    rest = core["memory_output"]
    zero = {n: leaf if n == "out_bias" else jnp.zeros_like(leaf) for n, leaf in rest.items()}
    ours = forward({**params, "core": core}, text(), config)[0]
    bias = forward({**params, "core": core | {"memory_output": zero}}, text(), config)[0]
    assert_close(ours, bias)


@pytest.mark.slow
def test_the_table_has_a_learning_rate_of_its_own():
    config = build(KINDS["values"])
    specs, params = model.specs(config), draw(config)
    rule = AdamW(learning_rate=0.01, weight_decay=0.1)
    grads = jax.tree.map(jnp.ones_like, params)
    steps = rule.transform(specs, lambda _: 1.0)
    change, _ = steps.update(grads, steps.init(params), params)
    assert_close(change["core"]["memory_values"], jnp.full((1, N * N, V), -0.1), 4096)
    assert_close(change["core"]["memory_output"]["out_bias"], jnp.full((2, D), -0.01), 4096)


@KIND
def test_parameters_and_flops_are_closed_forms(kind):
    assert_exact(build(kind), seq_len=7)
    search = 2 * HEADS * K * (D + N)
    rest = 2 * HEADS * TOP * V + 4 * D * V if kind is KINDS["values"] else 4 * HEADS * TOP * D
    assert kind.forward_flops(D) == search + rest


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (dict(top_k=N + 1), f"top_k: got {N + 1}, takes 1 to the {N} of num_keys"),
        (dict(key_dim=5), "key_dim: got 5, takes an even number"),
        (dict(num_keys=0), "num_keys: got 0"),
        (dict(values_rate=0.0), "values_rate: got 0.0"),
    ],
)
@KIND
def test_sizes_that_cannot_be_searched_are_refused(kind, fields, why):
    with pytest.raises(ValueError, match=why):
        dataclasses.replace(kind, **fields)
