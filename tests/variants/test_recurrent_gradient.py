"""The gradient of recursions of any number: cut, computed again, and what is kept for it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, model, params
from recursia.layers.attention import Context
from recursia.sharing.remat import KEEP, Remat
from recursia.traced_flops import count_flops
from tests.helpers import slow
from tests.helpers.flops import loss as traced_loss
from tests.helpers.recurrent_by_hand import FIXED, gradient, key_of, noise, run, tiny, weights
from tests.helpers.tiny import BATCH, BLOCK, LENGTH, assert_close, counted, text


def test_recursions_without_gradient_change_no_value():
    p = weights(FIXED)
    full = tiny(sampler="fixed", backprop_depth=3)
    ours, all_trained = (run(p, text(), c, "train", state=noise())[0] for c in (FIXED, full))
    assert_close(ours, all_trained)
    assert_close(ours, run(p, text(), FIXED, "eval", state=noise())[0])


@pytest.mark.parametrize("recursions", [1, 2, 3, 7])
def test_the_first_state_has_a_gradient_when_all_recursions_do(recursions):
    config = tiny()
    p, key = weights(config), key_of(recursions, config.depth)
    towards = gradient(p, noise(), text(), config, key=key)[1]
    assert bool(np.any(towards)) == (recursions <= config.depth.backprop_depth)


@pytest.mark.slow
@pytest.mark.parametrize("recursions", [slow(1), 2, slow(5)])
def test_the_gradient_is_that_of_a_loop_cut_by_hand(recursions):
    config, tokens = tiny(), text()
    p, key = weights(config), key_of(recursions, config.depth)
    place = jnp.broadcast_to(jnp.arange(LENGTH), (BATCH, LENGTH))
    where = Context(place, jnp.ones_like(place))

    def block(x, bank, k):
        return BLOCK.apply(jax.tree.map(lambda leaf: leaf[k], bank), x, where)[0]

    def total(p):
        norm = lambda x: model.normalise(p, x, config)
        e, x = block(p["embed"]["table"][tokens], p["prelude"], 0), noise()
        for i in range(recursions):
            if i == recursions - config.depth.backprop_depth:
                x = jax.lax.stop_gradient(x)
            x = jnp.concatenate([x, e], -1) @ p["inject"]["adapter"]
            for k in range(2):
                x = block(x, p["core"], k)
        x = norm(block(norm(x), p["coda"], 0))
        return jnp.sin(x @ p["embed"]["table"].T).mean()

    ours = gradient(p, noise(), tokens, config, key=key)[0]
    assert_close(ours, jax.jit(jax.grad(total))(p), n=1024)
    fixed = tiny(recursions, sampler="fixed")
    assert_close(ours, gradient(p, noise(), tokens, fixed)[0], n=1024)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["block", "recursion"])
def test_what_is_computed_again_changes_no_gradient(remat):
    config, key = tiny(), key_of(3, tiny().depth)
    p = weights(config)
    ours = gradient(p, noise(), text(), config, key=key, remat=Remat(remat))
    assert_close(ours, gradient(p, noise(), text(), config, key=key))


def program(config, remat=KEEP):
    """Returns the program of loss and gradient."""
    p = params.abstract(model.specs(config))
    tokens = jax.ShapeDtypeStruct((BATCH, 13), jnp.int32)
    run = jax.value_and_grad(functools.partial(traced_loss, model_config=config, remat=remat))
    return jax.make_jaxpr(run)(p, tokens)


def test_recursions_that_may_be_skipped_keep_no_weights_each():
    trained, blocks = 5, 3
    for remat in ("none", "block"):
        config, shapes = tiny(8, blocks, backprop_depth=trained), set()
        bank = {spec.shape for spec in jax.tree.leaves(model.specs(config)["core"]["mlp"])}
        note = lambda e, to=shapes: to.update(value.aval.shape for value in e.outvars) or 0
        counted(program(config, Remat(remat)).jaxpr, note)
        kept = {(trained, *shape) for shape in bank} & shapes
        if remat == "block":
            assert not kept
        elif jax.__version_info__ < (0, 11):  # later ones never keep them: nothing is to be mended
            assert kept


@pytest.mark.slow
def test_of_recursions_that_may_be_skipped_blocks_alone_are_computed_again():
    """As many products more as where the number of recursions is known."""

    def products(remat=KEEP, **how):
        is_product = lambda equation: equation.primitive.name == "dot_general"
        return counted(program(tiny(8, 3, backprop_depth=5, **how), remat).jaxpr, is_product, True)

    drawn, known = (
        products(Remat("block"), sampler=sampler) - products(sampler=sampler)
        for sampler in ("poisson_lognormal", "fixed")
    )
    assert drawn == known > 0


@pytest.mark.parametrize(
    ("recursions", "trained", "remat"),
    [(5, 2, "none"), (5, 2, "block"), (5, 2, "recursion"), (2, 4, "none"), (3, 1, "none")],
)
def test_flops_of_a_cut_gradient_are_exact(recursions, trained, remat):
    config = tiny(recursions, sampler="fixed", backprop_depth=trained)
    p = params.abstract(model.specs(config))
    tokens = jax.ShapeDtypeStruct((BATCH, 13), jnp.int32)

    def count(transform):
        function = transform(
            functools.partial(traced_loss, model_config=config, remat=Remat(remat))
        )
        return count_flops(jax.make_jaxpr(function)(p, tokens))

    forward, both = count(lambda f: f), count(jax.value_and_grad)
    assert BATCH * accounting.forward_flops(config, 13) == forward
    assert BATCH * accounting.executed_training_flops(config, 13, Remat(remat)) == both
    assert BATCH * accounting.training_flops(config, 13) <= min(both, 3 * forward)
