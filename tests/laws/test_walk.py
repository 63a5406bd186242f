"""The scans over recursions and blocks are the plain loop over steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recursia import injection, model
from recursia.layers.attention import Context
from recursia.params import at
from recursia.sharing.remat import Remat
from tests.helpers import by_hand, exhaustive
from tests.helpers.tiny import (
    BLOCK,
    assert_close,
    counted,
    draw,
    forward,
    gradient,
    loss,
    text,
    tiny,
)

MIXED = (
    ("attention", "recursion+block"),
    ("norms", "recursion"),
    ("mlp", ((0, 1), (2, 2), (1, 0))),
)
WALKS = {
    "cycle": ("cycle", ()),
    "sequence": ("sequence", ()),
    "mixed cycle": ("middle_cycle", MIXED),
    "mixed sequence": ("middle_sequence", MIXED),
    "none": ("none", ()),
    "one": ("cycle", tuple((slot, "one") for slot in BLOCK.slots)),
}


def loop(params, tokens, config):
    """Returns logits by a Python loop over the steps, and the state after each."""
    plan, states, made = config.schedule, [], {}
    context = Context(
        jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape), jnp.ones_like(tokens)
    )
    x = params["embed"]["table"][tokens]
    for i in range(config.ends["prelude"]):
        x, *_ = config.block.apply(at(params["prelude"], i), x, context)
    for step in plan.steps:
        weights = {s: at(bank, plan.entry(s)[step]) for s, bank in params["core"].items()}
        owner = plan.owners[step]
        read = None if owner == step else made[owner]
        x, mine, _ = config.block.apply(weights, x, context, read)
        made[step] = mine, context
        states.append(x)
    for i in range(config.ends["coda"]):
        x, *_ = config.block.apply(at(params["coda"], i), x, context)
    return model.logits(params, model.normalise(params, x, config), config), states


@pytest.mark.parametrize(("pattern", "varies"), WALKS.values(), ids=WALKS)
@pytest.mark.parametrize("kv", ["own", "first_recursion"])
def test_scan_is_the_python_loop(pattern, varies, kv):
    config = tiny(sharing_=pattern, varies=varies, kv=kv)
    params = draw(config)
    logits, aux = forward(params, text(), config)
    by_loop, states = loop(params, text(), config)
    assert_close(logits, by_loop)
    if config.schedule.order == "cycle":  # the state after the last block of each recursion
        assert_close(aux.states, jnp.stack(states[1::2]))
    assert np.all(aux.depth_used == 3)


@pytest.mark.few(1)
# Gradients of the others are sums over copies in test_sharing.py.
@pytest.mark.parametrize("remat", ["none", "block"])
@pytest.mark.parametrize("name", [exhaustive(n) if n in ("none", "one") else n for n in WALKS])
def test_the_scan_that_training_takes_is_the_python_loop(name, remat):
    pattern, varies = WALKS[name]
    config = tiny(sharing_=pattern, varies=varies)
    params = draw(config)

    def by_loop(params):
        nats = optax.softmax_cross_entropy_with_integer_labels(
            loop(params, text(), config)[0][:, :-1], text()[:, 1:]
        )
        return nats.mean()

    assert forward(params, text(), config, "train")[1].states is None
    assert_close(
        gradient(params, text(), config, remat=Remat(remat)),
        jax.jit(jax.value_and_grad(by_loop))(params),
        n=512,
    )


TOLD = [
    ({"input": "add"}, "none"),
    exhaustive({"position": "halves", "step": "learned"}, "none"),
    ({"step": "interleaved"}, "each"),
    exhaustive({}, "each"),
]


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize(("told", "norm"), TOLD)
def test_what_stands_between_recursions_stands_there_in_one_scan_too(told, norm, blocks):
    """The one scan of training against the two of evaluation, which keep every state."""
    config = tiny(sharing_="middle_cycle", blocks=blocks)
    config = dataclasses.replace(config, inject=injection.Injection(**told), loop_norm=norm)
    params = draw(config)
    ours, read = (gradient(params, text(), config, mode=mode) for mode in ("train", "eval"))
    assert_close(ours, read, n=512)
    plain = dataclasses.replace(config, inject=injection.Injection(), loop_norm="none")
    assert abs(ours[0] - loss(params, text(), plain)) > 1e-3  # all this is seen


def test_the_first_recursions_keys_and_values_are_not_ones_own():
    own, shared = tiny(), tiny(kv="first_recursion")
    params = draw(own)
    difference = forward(params, text(), own)[0] - forward(params, text(), shared)[0]
    assert np.abs(difference).max() > 1e-2


@pytest.mark.parametrize("pattern", ["cycle", "sequence", "middle_cycle"])
def test_with_one_recursion_the_first_recursions_keys_and_values_are_ones_own(pattern):
    own, shared = (tiny(sharing_=pattern, recursions=1, kv=kv) for kv in ("own", "first_recursion"))
    params = draw(own)
    assert_close(forward(params, text(), own)[0], forward(params, text(), shared)[0])


@pytest.mark.parametrize("remat", ["none", "block", "recursion"])
def test_the_backward_pass_computes_again_what_it_is_told_to(remat):
    config, told = tiny(), Remat(remat)
    apply = lambda p: model.apply(p, text(), config, mode="train", remat=told).hidden
    is_product = lambda equation: equation.primitive.name == "dot_general"

    def is_again(equation):  # but for the inputs of single products, which are stored alone
        is_remat = equation.primitive is jax.extend.core.primitives.remat_p
        return is_remat and counted(equation.params["jaxpr"], is_product) > 1

    jaxpr = jax.make_jaxpr(apply)(draw(config)).jaxpr
    assert counted(jaxpr, is_again) == (0 if remat == "none" else 1)


@pytest.mark.parametrize("is_reading", [False, True])
def test_the_block_is_its_formula(is_reading):
    config = tiny(recursions=1, blocks=1)
    weights = at(draw(config)["core"], 0)
    rng = np.random.default_rng(0)
    x, other = rng.normal(size=(2, 1, 12, BLOCK.embed_dim)).astype(np.float32)
    where = np.array([[0, 1, 2, 5, 6, 7, 0, 1, 2, 3, 4, 9], [1] * 6 + [2] * 6])
    context = Context(jnp.asarray(where[:1]), jnp.asarray(where[1:]))
    source = by_source = None
    if is_reading:
        source = BLOCK.apply(weights, jnp.asarray(other), context)[1], context
        by_source = by_hand.block(by_hand.pick(weights, ...), other[0], where, BLOCK)[1]
    y, made, _ = BLOCK.apply(weights, jnp.asarray(x), context, source)
    by_y, by_made = by_hand.block(by_hand.pick(weights, ...), x[0], where, BLOCK, by_source)
    assert_close(y[0], by_y)
    assert (made is None) == is_reading
    if not is_reading:
        assert_close((made.key[0], made.value[0]), by_made[:2])
