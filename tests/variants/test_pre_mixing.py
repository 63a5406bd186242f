"""Pre-mixing attention over the experts of the feed-forward: UMoE, arXiv 2505.07260."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, config, params
from recursia.blocks.pre_norm import PreNorm
from recursia.errors import ConfigError
from recursia.feedforward.glu_moe import GluMoE
from recursia.feedforward.sigma_moe import SigmaMoE
from recursia.layers.attention import Context
from recursia.layers.initial import Init
from recursia.mixers.grouped_query import GroupedQuery
from recursia.mixers.pre_mixing import PreMixing
from recursia.sharing.lora import Lora
from tests.helpers import points
from tests.helpers.refusals import refused
from tests.helpers.tiny import BATCH, LENGTH, assert_close, normal

D, E, F, HEAD, RANK, TOP = 8, 5, 6, 4, 3, 2
INIT = Init(std=0.5)
MIXER = PreMixing(HEAD, TOP, RANK, attention_shared_dim=F, attention_scale=1.5, init=INIT)
EXPERTS = GluMoE(num_experts=E, top_k=3, expert_dim=F, is_gated=False, init=INIT)
BLOCK = PreNorm(D, MIXER, EXPERTS)
PLACES = jnp.broadcast_to(jnp.arange(LENGTH), (BATCH, LENGTH))
H = normal(BATCH, LENGTH, D)


def weights_of(block, seed=0):
    return params.init(block.specs(2), jax.random.key(seed))


@functools.partial(jax.jit, static_argnums=0)
def mixed(block, weights, h, context):
    return block.mixer.apply(weights, h, h, context)[0]


def turned(x, place):
    """Returns a head rotated by its place, with its first half as real parts."""
    angle = place / 10_000.0 ** (np.arange(HEAD // 2) / (HEAD // 2))
    z = (x[: HEAD // 2] + 1j * x[HEAD // 2 :]) * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag])


def by_hand(weights, h):
    """Returns what each token of a text [T D] writes, in float64, one query at a time."""
    w = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), weights)
    own, bank, shared = w["attention_queries"], w["experts"], w["attention_shared"]
    silu = lambda z: z / (1 + np.exp(-z))
    keys = np.array([turned(u @ w["attention"]["key"], s) for s, u in enumerate(h)])

    def attended(query, t):
        scores = keys[: t + 1] @ turned(query, t) / np.sqrt(HEAD)
        p = np.exp(scores - scores.max())
        return p @ h[: t + 1] / p.sum()

    out = np.zeros_like(h)
    for t, u in enumerate(h):
        p = np.exp(u @ w["attention_router"])
        p /= p.sum()
        for i in np.argsort(-p)[:TOP]:
            thin = u @ own["down"][i]
            thin *= own["norm"] / np.sqrt(np.mean(thin**2) + 1e-6)
            z = attended(u @ w["attention"]["query"] + thin @ own["up"][i], t)
            out[t] += 1.5 * p[i] * silu(z @ bank["up"][i]) @ bank["down"][i]
        z = attended(u @ w["attention"]["shared_query"], t)
        out[t] += silu(z @ shared["up"]) @ shared["down"]
    return out


def test_it_is_the_equation():
    weights = weights_of(BLOCK)
    norm = weights["attention_queries"] | {"norm": normal(RANK, seed=1)}
    weights |= {"attention_queries": norm}
    expected = np.stack([by_hand(weights, np.asarray(h, np.float64)) for h in H])
    assert_close(mixed(BLOCK, weights, H, Context(PLACES)), expected)


class Linear(GluMoE):
    """Experts without a nonlinearity."""

    def activation(self, x):
        """Returns the units as they are."""
        return x


def test_linear_experts_that_all_have_weight_1_are_heads_of_attention():
    """One key for all of them; queries are not normed where the states are already."""
    heads, h = 3, H / jnp.sqrt(jnp.mean(H**2, -1, keepdims=True))
    attention = GroupedQuery(heads, heads, HEAD, init=INIT)
    their = params.init(attention.specs(D, 2), jax.random.key(0))["attention"]
    key = their["key"][:, :1]
    their |= {"key": jnp.repeat(key, heads, axis=1)}
    want = attention.apply({"attention": their}, h, h, Context(PLACES))[0]
    mixer = PreMixing(HEAD, heads, query_rank=D, attention_scale=heads)
    block = PreNorm(D, mixer, Linear(heads, heads, HEAD, is_gated=False))
    ours = jax.tree.map(jnp.zeros_like, weights_of(block))  # the router's scores are all 1 / heads
    ours["attention"]["key"] = key[:, 0]
    ours["attention_queries"] = {
        "down": jnp.broadcast_to(jnp.eye(D), (heads, D, D)),
        "norm": jnp.ones(D),
        "up": their["query"].swapaxes(0, 1),
    }
    ours["experts"] = {"up": their["value"].swapaxes(0, 1), "down": their["out"]}
    assert_close(mixed(block, ours, h, Context(PLACES)), want)


@pytest.mark.parametrize("experts", [EXPERTS, SigmaMoE(E, 3, F)])
def test_a_token_that_sees_itself_alone_meets_a_feedforward(experts):
    """The first of a text; experts that gate otherwise have other weights, and are the same."""
    block = PreNorm(D, dataclasses.replace(MIXER, attention_top_k=3), experts)
    weights, first, where = weights_of(block), H[:, :1], Context(PLACES[:, :1])
    weights["attention_shared"] = jax.tree.map(jnp.zeros_like, weights["attention_shared"])
    router = weights["attention_router"]
    if isinstance(experts, SigmaMoE):
        choice = jax.nn.softmax(first @ router)
        best = jax.lax.top_k(choice, 3)[1]
        relu = jax.nn.relu(jnp.einsum("btd,edf->btef", first, weights["experts"]["up"]))
        each = jnp.einsum("btef,efd->bted", relu, weights["experts"]["down"])
        scale = 1.5 * jnp.take_along_axis(choice, best, -1)
        want = (scale[..., None] * jnp.take_along_axis(each, best[..., None], 2)).sum(2)
    else:
        same = dataclasses.replace(experts, scale=1.5)
        want = same.apply(weights | {"router": router}, first, first, where)[0]
    assert_close(mixed(block, weights, first, where), want)


def test_gradients_of_both_branches_add_in_the_one_bank():
    weights, where = weights_of(BLOCK), Context(PLACES)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def apart(ours, theirs):
        norm = lambda x: x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + BLOCK.norm_eps)
        h = norm(H)
        x = H + BLOCK.mixer.apply({**weights, "experts": ours}, h, h, where)[0]
        h = norm(x)
        x += BLOCK.feedforward.apply({**weights, "experts": theirs}, h, h, where)[0]
        return (x**2).sum()

    run = lambda bank: (BLOCK.apply({**weights, "experts": bank}, H, where)[0] ** 2).sum()
    one, two = apart(weights["experts"], weights["experts"])
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves((one, two)))
    assert_close(jax.jit(jax.grad(run))(weights["experts"]), jax.tree.map(jnp.add, one, two))


def test_the_bank_follows_its_own_plan_of_sharing_and_the_rest_another():
    plans = {"experts": "one", "attention": "recursion+block"}
    made = points.point("pre_norm", mixer="pre_mixing", varies=tuple(plans.items()))
    sizes = {slot: made.schedule.size(slot) for slot in ("experts", "attention", "router")}
    assert sizes == {"experts": 1, "attention": 6, "router": 2}


@pytest.mark.parametrize(
    ("preset", "millions", "cached"), [("small", 540, 960), ("large", 3676, 2560)]
)
def test_published_sizes(preset, millions, cached):
    model = config.load(f"umoe:{preset}", {}).model
    assert accounting.unique_parameters(model) // 10**6 == millions
    assert accounting.cache_bytes_per_token(model, 1024) == 2 * model.num_layers * cached


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"feedforward": "swiglu"}, ("'experts'", "mlp", "glu_moe")),
        ({"feedforward": "product_keys"}, ("'experts'", "memory_keys")),
        ({"kv_sharing": "groups/2 replayed"}, ("chosen for each token", "keys_values")),
        ({"weights": Lora(2, ("attention_queries",))}, ("attention_queries", "experts")),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(fields, parts):
    with refused(ValueError, *parts):
        made = points.point("pre_norm", **{"mixer": "pre_mixing", **fields, "weights": "tied"})
        dataclasses.replace(made, weights=fields["weights"])


def test_settings_out_of_range_are_refused_by_name():
    for field, value in (("attention_top_k", 13), ("head_dim", 3), ("query_rank", 0)):
        with refused(ConfigError, field, value):
            config.load("umoe:tiny", {f"block.mixer.{field}": str(value)})
