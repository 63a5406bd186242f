"""Any point on the axes trains, and obeys what every model obeys, or is refused with a reason.

Hypothesis draws the points from all blocks, depth policies, patterns, sources of keys, weight kinds
and injections that there are; a new file on an axis is drawn too.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from recursia import injection, model, params
from recursia.embeddings.table import Table
from recursia.laws.statements import LAWS
from recursia.layers.attention import Context
from recursia.sharing.remat import Remat
from recursia.traced_flops import count_flops
from tests.helpers import points, slow
from tests.helpers.blocks import PUBLISHED
from tests.helpers.refusals import refused
from tests.helpers.tiny import (
    BATCH,
    LENGTH,
    assert_close,
    draw,
    error,
    forward,
    gradient,
    text,
)

BY_BLOCK = (("attention_lora", "block"), ("mlp_lora", "block"))
UNITS = ("none", "block", "recursion")  # of rematerialisation
DRAWS = (Phase.explicit, Phase.generate)  # a failure is shown as it was drawn, not made smaller
LEGAL, MORE = 3, 12  # points that train; those refused cost nothing and are drawn besides
DEPTHS = [d if d in ("fixed", "act", "expert_choice") else slow(d) for d in points.DEPTHS]
BLOCKS = [b if b in ("llama", "moeut") else slow(b) for b in PUBLISHED]


@st.composite
def arguments(draw_from):
    """Draws what `points.point` takes; not every draw can be combined."""
    pick = lambda *options: draw_from(st.sampled_from(options))
    return dict(
        block_=pick(*points.BLOCKS, *PUBLISHED),
        mixer=pick(*points.MIXERS),
        feedforward=pick(*points.FEEDFORWARDS),
        depth_=pick(*points.DEPTHS),
        sharing=pick(*points.PATTERNS),
        recursions=pick(1, 2, 3),
        num_blocks=pick(1, 2),
        inject_=pick(*points.INJECTS),
        copies=pick(*points.COPIES),
        ends=pick(*["alike"] * len(points.FEEDFORWARDS), *points.FEEDFORWARDS),
        weights=pick(*points.WEIGHTS),
        parameterisation=pick("standard", *points.PARAMETERISATIONS),
        kv_sharing=pick(*points.PLANS, "a table"),
        varies=pick((), (("norms", "recursion+block"),), (("norms", "one"),)),
        loop_norm=pick("none", "none", "each", "last"),
        embed=pick(
            *(points.small("embed", kind) for kind in points.EMBEDS if kind != "table"),
            Table(
                is_tied=pick(True, False), has_head_bias=pick(True, False), factor_dim=pick(0, 8)
            ),
        ),
    )


def with_table(arguments):
    """Returns the arguments with a table of keys that is legal for them, where one is wanted."""
    if arguments["kv_sharing"] != "a table":
        return arguments
    order = "sequence" if arguments["sharing"].endswith("sequence") else "cycle"
    rng = np.random.default_rng(0)
    table = points.keys(rng, arguments["recursions"], arguments["num_blocks"], order)
    return {**arguments, "kv_sharing": table}


@st.composite
def legal_points(draw_from):
    """Draws a model, discarding what is refused; the refusal must be one line with a reason."""
    for _ in range(50):
        try:
            return points.point(**with_table(draw_from(arguments())))
        except ValueError as refusal:
            assert "\n" not in str(refusal) and ": " in str(refusal)
    raise AssertionError("50 draws in a row were refused")


def law_training(config, weights, remat):
    loss, grads = gradient(weights, text(), config, remat=Remat(remat))
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def law_wanted(config, weights):
    wanted = jnp.zeros((BATCH, LENGTH), bool).at[:, 5].set(True)
    out = jax.jit(lambda w: model.apply(w, text(), config, mode="causal", wanted=wanted).hidden)
    logits = forward(weights, text(), config, "causal")[0]
    assert_close(model.logits(weights, out(weights), config)[:, 5], logits[:, 5])


def obeys(config, remat, *more):
    """Asserts laws that `recursia laws` states, those that need few programs and more."""
    weights = draw(config)
    for law in ("parameters", "flops", "causality", *more):
        assert not LAWS[law](config, weights), law
    law_training(config, weights, remat)
    law_wanted(config, weights)


@pytest.mark.slow
@settings(max_examples=LEGAL, derandomize=True, deadline=None, database=None, phases=DRAWS)
@given(legal_points(), st.sampled_from(UNITS))
def test_any_point_obeys_the_laws(config, remat):
    obeys(config, remat)


@pytest.mark.exhaustive
@seed(1)
@settings(max_examples=MORE, deadline=None, database=None)
@given(legal_points(), st.sampled_from(UNITS))
def test_more_points_obey_the_laws(config, remat):
    obeys(config, remat, "sharing")


@pytest.mark.parametrize(("block", "depth"), list(itertools.product(PUBLISHED, points.DEPTHS)))
def test_every_block_goes_with_every_depth_policy(block, depth):
    made = points.block(block)
    if points.policy(depth).scales_branches and not (made.is_additive and not made.carried_dim):
        with pytest.raises(ValueError, match="multiplies what branches add"):
            points.point(block, depth)
        return
    config = points.point(block, depth)
    shapes = params.abstract(model.specs(config))
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    for mode in ("train", "eval", "causal"):
        run = lambda w, t, mode=mode: model.apply(w, t, config, mode=mode, step=jnp.int32(0))
        assert jax.eval_shape(run, shapes, tokens).hidden.shape == (BATCH, LENGTH, 16)


# Every pair of an arrangement, a mixer and a feed-forward, in few triples.
PARTS = [
    (block, points.MIXERS[(i + j) % len(points.MIXERS)], feedforward)
    for i, block in enumerate(points.BLOCKS)
    for j, feedforward in enumerate(points.FEEDFORWARDS)
]


@pytest.mark.parametrize("parts", PARTS, ids="-".join)
def test_every_arrangement_goes_with_every_mixer_and_feedforward(parts):
    """Also which weights a reading step leaves out: all that make keys and values, and no other.

    But for a mixer that uses weights which the feed-forward does not have.
    """
    block, mixer, feedforward = parts
    if missing := set(points.small("mixer", mixer).uses) - set(
        points.small("feedforward", feedforward).slots
    ):
        with refused(ValueError, *missing):
            points.block(block, mixer, feedforward)
        return
    made = points.block(block, mixer, feedforward)
    specs = made.specs(4)
    assert set(specs) == set(made.slots) >= {*made.exact, *(slot for slot, _ in made.key_weights)}
    x = jax.ShapeDtypeStruct((BATCH, LENGTH, made.stream_dim), jnp.float32)
    where = Context(jnp.zeros((BATCH, LENGTH), jnp.int32))

    def run(weights, x):
        x, made_, report = made.apply(weights, x, where)
        again, nothing, read = made.apply(weights, x, where, (made_, where))
        assert nothing is None and jax.tree.structure(read) == jax.tree.structure(report)
        stacked = jax.tree.map(lambda leaf: leaf[None], report)
        return again, made_, made.losses(stacked)

    shapes = params.abstract(specs)
    again, made_, (losses, _) = jax.eval_shape(run, shapes, x)
    once = jax.make_jaxpr(lambda weights, x: made.apply(weights, x, where)[0])(shapes, x)
    assert count_flops(once) == BATCH * LENGTH * made.forward_flops(LENGTH, False)
    assert again.shape == x.shape and all(loss.shape == () for loss in losses.values())
    entries = sum(leaf.size for leaf in jax.tree.leaves(made_)) // (BATCH * LENGTH)
    assert entries == made.cache_entries()


@pytest.mark.few(1)
@pytest.mark.parametrize("depth", DEPTHS)
def test_neutral_relaxations_are_neutral(depth):
    pattern = "cycle" if depth == "exit_gate" else "middle_cycle"  # a gate takes no coda
    plain = points.point("llama", depth, sharing=pattern)
    how = {"weights": "lora", "sharing": pattern}
    if depth in points.NEEDS or plain.depth.scales_branches:  # nothing varies along recursions
        relaxed = points.point("llama", depth, varies=BY_BLOCK, **how)
    else:
        relaxed = points.point("llama", depth, inject_="learned steps", **how)
    weights = draw(plain)
    more = params.init(model.specs(relaxed), jax.random.key(0))
    # Adapters as they start, the second factor zero; and vectors that say nothing.
    core = {**more["core"], **weights["core"]}
    told = {**jax.tree.map(jnp.zeros_like, more["inject"]), **weights["inject"]}
    assert more["core"].keys() - weights["core"].keys() == {"attention_lora", "mlp_lora"}
    relaxed_logits = forward({**weights, "core": core, "inject": told}, text(), relaxed)[0]
    assert_close(relaxed_logits, forward(weights, text(), plain)[0])


def test_nothing_is_told_unless_asked():
    assert points.INJECTS["nothing"] == injection.Injection()


def looped(step, carry, xs=None, length=None):
    """Does what a scan does, one step after the other."""
    outs = []
    for i in range(len(jax.tree.leaves(xs)[0]) if length is None else length):
        carry, out = step(carry, jax.tree.map(lambda leaf, i=i: leaf[i], xs))
        outs.append(out)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outs)


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_scan_is_its_loop(depth, monkeypatch):
    config = points.point("llama", depth)
    weights = draw(config)
    logits, aux = forward(weights, text(), config)
    scans = lambda f: str(jax.make_jaxpr(f)(weights)).count("scan[")
    run = lambda weights: model.apply(weights, text(), config, mode="eval")
    before = scans(run)
    monkeypatch.setattr(jax.lax, "scan", looped)
    run = lambda weights: model.apply(weights, text(), config, mode="eval")
    assert scans(run) < before
    out = jax.jit(run)(weights)
    assert_close(model.logits(weights, out.hidden, config), logits)
    assert np.array_equal(out.aux.depth_used, aux.depth_used)


@pytest.mark.parametrize("block", BLOCKS)
def test_entries_may_be_stored_in_any_order(block):
    """A bank permuted together with the table of who uses what is the same model."""
    config = points.point(block, num_blocks=3)
    weights = draw(config)
    order = np.array([2, 0, 1])  # where each entry goes
    table = tuple(map(tuple, order[config.schedule.by_recursion("norms")].tolist()))
    permuted = dataclasses.replace(config, varies=tuple((slot, table) for slot in weights["core"]))
    core = jax.tree.map(lambda bank: bank[np.argsort(order)], weights["core"])
    logits = forward({**weights, "core": core}, text(), permuted)
    assert_close(logits[0], forward(weights, text(), config)[0])
    assert error(forward({**weights, "core": core}, text(), config)[0], logits[0]) > 1e-3
