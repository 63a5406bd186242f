"""A mixture of LoRAs: one feed-forward, of which each token mixes several a thin product apart."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, config, model, params
from recursia.architecture import Model
from recursia.blocks.pre_norm import PreNorm
from recursia.depth.fixed import Fixed
from recursia.feedforward.gelu import GELU
from recursia.feedforward.mixture_of_loras import MixtureOfLoras
from recursia.feedforward.sigma_moe import SigmaMoE
from recursia.feedforward.swiglu import SwiGLU
from recursia.layers.attention import Context
from recursia.mixers.grouped_query import GroupedQuery
from recursia.sharing import lora
from tests.helpers.flops import assert_exact
from tests.helpers.tiny import VOCAB, assert_close, draw, forward, gradient, is_equal, text

D, F, E, R = 16, 24, 4, 3
INNER = SwiGLU(F)
MIXTURE = MixtureOfLoras(INNER, num_experts=E, rank=R, scale=0.5)
PRIVATE = (("lora_experts", "recursion+block"), ("lora_router", "recursion+block"))


def build(feedforward=MIXTURE, **options):
    """Returns three recursions of one block."""
    block = PreNorm(D, GroupedQuery(num_heads=2, num_kv_heads=1, head_dim=4), feedforward)
    return Model(3, block, Fixed(3), sharing="cycle", vocab_size=VOCAB, **options)


def by_hand(weights, h, mixture=MIXTURE):
    """Returns what each token [N D] gives, in float64, and the experts that it takes."""
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), weights)
    p = np.exp(h @ weights["lora_router"])
    p /= p.sum(-1, keepdims=True)
    best = np.argsort(-p, axis=-1, kind="stable")[:, : mixture.top_k]
    out = np.zeros_like(h)
    for t, taken in enumerate(best):
        for e in taken:
            pairs = weights["lora_experts"]
            gate, up, down = (
                weights["mlp"][n] + mixture.scale * pairs[n]["a"][e] @ pairs[n]["b"][e]
                for n in ("gate", "up", "down")
            )
            z = h[t] @ gate
            out[t] += p[t, e] / p[t, taken].sum() * (z / (1 + np.exp(-z)) * (h[t] @ up)) @ down
    return out, best


def test_it_is_the_equation():
    config = build()
    weights = jax.tree.map(lambda leaf: leaf[0], draw(config)["core"])
    h = np.random.default_rng(0).normal(size=(2, 5, D))
    live = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], bool)
    where = Context(jnp.zeros((2, 5), jnp.int32), is_live=jnp.asarray(live))
    x = jnp.asarray(h, jnp.float32)
    ours, report = MIXTURE.apply(weights, x, x, where)
    theirs, best = by_hand(weights, h.reshape(-1, D))
    assert np.abs(np.asarray(ours).reshape(-1, D) - theirs).max() < 1e-5 * np.abs(theirs).max()
    # Padding is in no statistic.
    used = report["lora_router"]
    assert used.tokens.tolist() == [4, 3]
    counts = np.bincount(best[live.reshape(-1)].reshape(-1), minlength=E)
    assert used.taken.sum(0).tolist() == counts.tolist()
    share = counts[counts > 0] / counts.sum()
    (metric,) = MIXTURE.losses(jax.tree.map(lambda leaf: leaf[None], report))[1].values()
    assert abs(metric - np.exp(-(share * np.log(share)).sum()) / E) < 1e-6


@pytest.mark.parametrize("inner", [INNER, GELU(F)], ids=["swiglu", "gelu"])
def test_a_new_mixture_is_the_shared_model_bit_for_bit(inner):
    wide, plain = (
        build(dataclasses.replace(MIXTURE, feedforward=inner), varies=PRIVATE),
        build(inner),
    )
    ours, theirs = (model.init(c, jax.random.key(1)) for c in (wide, plain))
    experts = ours["core"]["lora_experts"]
    assert all(np.any(leaf["a"]) and not np.any(leaf["b"]) for leaf in experts.values())
    assert is_equal(forward(ours, text(), wide)[0], forward(theirs, text(), plain)[0])


def test_one_expert_is_an_adapter():
    alone = build(MixtureOfLoras(INNER, num_experts=1, rank=R, top_k=1, scale=0.5), varies=PRIVATE)
    adapted = build(INNER, weights=lora.Lora(R, ("mlp",), scale=0.5))
    weights = draw(alone)
    core = dict(weights["core"])
    core["mlp_lora"] = jax.tree.map(lambda leaf: leaf[:, 0], core.pop("lora_experts"))
    del core["lora_router"]
    assert core.keys() == model.specs(adapted)["core"].keys()
    assert_close(
        forward(weights, text(), alone)[0], forward({**weights, "core": core}, text(), adapted)[0]
    )


@pytest.mark.slow
def test_every_expert_and_router_learns():
    weights = draw(config := build(varies=PRIVATE))
    core = gradient(weights, text(), config)[1]["core"]
    assert all(
        np.any(leaf) for leaf in jax.tree.leaves((core["lora_experts"], core["lora_router"]))
    )


@pytest.mark.slow
def test_three_experts_of_a_feedforward_with_biases_cost_what_is_said():
    mixture = MixtureOfLoras(GELU(F), num_experts=E, rank=R, top_k=3)
    assert mixture.forward_flops(D) == 2 * (D * F + 3 * F * D + 2 * 3 * R * (D + F) + D * E)
    assert_exact(build(mixture), seq_len=7)
    # An adapter of a matrix is multiplied as often as the matrix.
    assert_exact(build(mixture, weights=lora.Lora(2, ("mlp",))), seq_len=7)


def test_parameters_are_those_of_the_experts_and_routers():
    experts, router = 3 * E * R * (D + F), D * E
    count = lambda *how, **more: accounting.unique_parameters(build(*how, **more))
    assert count() == count(INNER) + experts + router
    assert count(varies=PRIVATE) == count(INNER) + 3 * (experts + router)
    specs = MIXTURE.specs(D, 1)
    assert params.count(specs) == 3 * D * F + experts + router
    of = lambda *slots: jax.tree.leaves([specs[slot] for slot in slots])
    assert all(s.matrix for s in of("mlp")) and not any(s.matrix for s in of(*MIXTURE.slots[1:]))


def test_what_has_experts_already_is_refused():
    for inner in (SigmaMoE(4, 2), MIXTURE):
        with pytest.raises(ValueError, match="got one with the slots"):
            MixtureOfLoras(inner, num_experts=2, rank=1)


def test_it_can_be_typed():
    run = config.load(
        "looped:tiny",
        {
            "block.feedforward.kind": "mixture_of_loras",
            "block.feedforward.feedforward.kind": "gelu",
            "block.mlp_dim": "24",
            "block.num_experts": "4",
            "block.rank": "2",
        },
    )
    made = run.model.block.feedforward
    assert made == MixtureOfLoras(GELU(24), num_experts=4, rank=2)
    assert config.build(type(run), config.to_dict(run), "config") == run
