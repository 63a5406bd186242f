"""Relaxed weights: a step's are the shared ones plus its own product, and nothing else changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, config, kv, model
from recursia.architecture import Model
from recursia.depth.expert_choice import ExpertChoice
from recursia.depth.fixed import Fixed
from recursia.params import at
from recursia.sharing import lora, tied
from tests.helpers import by_hand, exhaustive
from tests.helpers.flops import assert_exact
from tests.helpers.tiny import (
    BLOCK,
    VOCAB,
    assert_close,
    draw,
    forward,
    gradient,
    is_equal,
    loss,
    text,
)

POLICIES = {"fixed": Fixed, "expert_choice": ExpertChoice}


def relaxed(weights=None, depth="fixed", sharing="cycle", kv_sharing="own", **options):
    """Returns a model of three recursions of two blocks; `weights` None is tied."""
    named = {} if weights is None else {"weights": weights}
    layers = 8 if sharing.startswith("middle_") else 6
    policy = POLICIES[depth](3)
    return Model(
        layers, BLOCK, policy, sharing=sharing, kv=kv.Plan(kv_sharing), **named, **options
    ).sized(VOCAB)


def merged(model_config, params):
    """Returns the model whose steps have the sums as weights of their own."""
    plan, scale = model_config.schedule, model_config.weights.scale
    at_steps = lambda slot: at(params["core"][slot], plan.entry(slot))

    def added(base, pair):
        flat_a = pair["a"].reshape(plan.num_steps, -1, pair["a"].shape[-1])
        flat_b = pair["b"].reshape(plan.num_steps, flat_a.shape[-1], -1)
        return base + scale * jnp.einsum("niz,nzo->nio", flat_a, flat_b).reshape(base.shape)

    core = {slot: at_steps(slot) for slot in BLOCK.slots}
    for slot in model_config.weights.slots:
        pairs = at_steps(f"{slot}_lora")
        core[slot] = {name: added(w, pairs[name]) for name, w in core[slot].items()}
    varies = tuple((slot, "recursion+block") for slot in BLOCK.slots)
    free = dataclasses.replace(model_config, varies=varies, weights=tied.Tied())
    return free, {**params, "core": core}


POINTS = {
    "cycle": dict(),
    "sequence": dict(sharing="sequence"),
    "ends of their own": dict(sharing="middle_cycle"),
    "first keys": dict(kv_sharing="first_recursion"),
    "one slot, scaled": dict(weights=lora.Lora(3, slots=("mlp",), scale=2.5)),
    "adapters by recursion": dict(varies=(("mlp_lora", "recursion"), ("attention_lora", "one"))),
    "adapters by table": dict(varies=(("mlp_lora", ((0, 1), (2, 0), (1, 1))),)),
    "routed": dict(depth="expert_choice", kv_sharing="first_recursion"),
    "norms of their own": dict(varies=(("norms", "recursion+block"),)),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("options", POINTS.values(), ids=POINTS)
def test_a_step_multiplies_by_the_sum(options):
    model_config = relaxed(**{"weights": lora.Lora(5), **options})
    params = draw(model_config)
    free, weights = merged(model_config, params)
    for mode in model_config.modes:
        logits, _ = forward(params, text(), model_config, mode)
        assert_close(logits, by_hand.forward(weights, text(), free, mode)[0])


@pytest.mark.few(1)
@pytest.mark.parametrize(
    "name", ["cycle", exhaustive("sequence"), "adapters by recursion", exhaustive("routed")]
)
def test_gradients_are_those_of_the_sums(name):
    """Of an adapter, what its own steps give; of a shared weight, what all steps give."""
    model_config = relaxed(**{"weights": lora.Lora(5, scale=0.5), **POINTS[name]})
    params = draw(model_config)
    free, _ = merged(model_config, params)
    by_sums = jax.jit(jax.grad(lambda p: loss(merged(model_config, p)[1], text(), free)))
    assert_close(gradient(params, text(), model_config)[1], by_sums(params), n=8 * 64)


@pytest.mark.parametrize("name", ["cycle", "sequence", "routed"])
def test_a_new_relaxed_model_is_the_new_tied_model_bit_for_bit(name):
    wide, plain = relaxed(lora.Lora(4), **POINTS[name]), relaxed(**POINTS[name])
    ours, theirs = (model.init(c, jax.random.key(1)) for c in (wide, plain))
    assert all(np.any(leaf["a"]) for leaf in ours["core"]["mlp_lora"].values())
    assert is_equal(forward(ours, text(), wide)[0], forward(theirs, text(), plain)[0])


def test_zero_adapters_leave_the_gradient_and_are_left_by_it():
    wide, plain = relaxed(lora.Lora(4)), relaxed()
    ours, theirs = (model.init(c, jax.random.key(1)) for c in (wide, plain))
    found = gradient(ours, text(), wide)[1]
    core = found["core"]
    shared = {**found, "core": {slot: core[slot] for slot in BLOCK.slots}}
    assert_close(shared, gradient(theirs, text(), plain)[1])
    assert not any(np.any(leaf["a"]) for leaf in core["mlp_lora"].values())
    assert all(np.all(np.any(leaf["b"], (-2, -1))) for leaf in core["mlp_lora"].values())


@pytest.mark.parametrize(
    ("weights", "options"),
    [
        (lora.Lora(7, slots=("attention",)), dict(sharing="middle_cycle")),
        (lora.Lora(99, slots=("mlp",)), dict(sharing="sequence")),
        (lora.Lora(2), dict(depth="expert_choice", kv_sharing="first_recursion")),
    ],
    ids=str,
)
def test_flops_of_some_slots_and_some_tokens_are_exact(weights, options):
    assert_exact(relaxed(weights, **options))


def test_flops_of_a_token_are_twice_the_parameters_of_its_adapters():
    model_config = relaxed(lora.Lora(5))
    added = [relaxed(weights) for weights in (None, model_config.weights)]
    seq_len = 9
    flops = np.subtract(*(accounting.forward_flops(c, seq_len) for c in reversed(added)))
    sizes = np.subtract(*(accounting.unique_parameters(c) for c in reversed(added)))
    assert flops == 2 * seq_len * sizes > 0


# Bae et al. 2024, table of the largest model: billions without the embedding.
PUBLISHED = {
    (2, None): 0.99, (2, 64): 1.07, (2, 128): 1.15, (2, 256): 1.30, (2, 512): 1.60,
    (3, None): 0.66, (3, 64): 0.74, (3, 128): 0.82, (3, 256): 0.97, (3, 512): 1.27,
}  # fmt: skip


@pytest.mark.parametrize(("recursions", "rank"), PUBLISHED)
def test_published_parameters(recursions, rank):
    typed = {"model.depth.num_recursions": str(recursions), "model.weights.rank": str(rank or 1)}
    run = config.load("relaxed:2b", typed)
    plain = {"weights": tied.Tied()} if rank is None else {}
    model_config = dataclasses.replace(run.model, **plain)
    d, kv_dim, f, layers = 2048, 256, 16384, 18
    linears = [(d, d), (d, kv_dim), (d, kv_dim), (d, d), (d, f), (d, f), (f, d)]
    layer = sum(taken * given for taken, given in linears) + 2 * d
    extra = sum(min(rank or 0, *sides) * sum(sides) for sides in linears)
    count = accounting.unique_parameters(model_config) - 256_000 * d
    assert count == layers // recursions * layer + layers * extra + d
    assert round(count / 1e9, 2) == PUBLISHED[recursions, rank]


def test_ends_have_no_adapters_and_a_thin_matrix_has_its_own_rank():
    specs = model.specs(relaxed(lora.Lora(10), sharing="middle_cycle"))
    assert set(specs["prelude"]) == set(specs["coda"]) == set(BLOCK.slots)
    assert set(specs["core"]) == {*BLOCK.slots, "attention_lora", "mlp_lora"}
    pairs = specs["core"]["attention_lora"]
    assert pairs["key"]["a"].shape == (6, 16, 8) and pairs["key"]["b"].shape == (6, 8, 2, 4)
    assert pairs["out"]["a"].shape == (6, 4, 4, 10)


def test_fewer_recursions_take_the_first_adapters_and_more_are_refused():
    model_config = relaxed(lora.Lora(2))
    params = draw(model_config)
    shorter, fewer = model.at_depth(model_config, params, 2)
    free, weights = merged(model_config, params)
    free, weights = model.at_depth(free, weights, 2)
    assert_close(forward(fewer, text(), shorter)[0], by_hand.forward(weights, text(), free)[0])
    with pytest.raises(ValueError, match="attention_lora, mlp_lora has weights for 3"):
        model.at_depth(model_config, params, 4)


def test_sharing_of_adapters_can_be_typed():
    typed = {"model.varies.mlp_lora": "recursion", "model.weights.slots": "mlp"}
    run = config.load("relaxed:tiny", typed)
    specs = model.specs(run.model.sized(11))["core"]
    assert specs["mlp_lora"]["up"]["a"].shape == (2, 64, 8)
    assert "attention_lora" not in specs


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (dict(rank=0), "rank: got 0"),
        (dict(rank=2, scale=0.0), "scale: got 0.0"),
        (dict(rank=2, slots=()), "slots: got [(][)]"),
        (dict(rank=2, slots=("mlp", "mlp")), "each once"),
        (dict(rank=2, slots=("router",)), "the block has no 'router'; it has norms"),
        (dict(rank=2, slots=("norms",)), "'norms' is not made of matrices"),
    ],
)
def test_what_cannot_be_relaxed_is_refused_in_one_line(fields, why):
    with pytest.raises(ValueError, match=why) as refusal:
        relaxed(lora.Lora(**fields))
    assert "\n" not in str(refusal.value)
