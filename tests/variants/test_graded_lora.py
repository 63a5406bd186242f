"""Adapters of another rank in each recursion: their products, their number and their ranks."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting
from recursia.params import at
from recursia.sharing.graded_lora import GradedLora
from recursia.sharing.lora import Lora
from recursia.sharing.tied import Tied
from tests.helpers.flops import assert_exact
from tests.helpers.flops import tiny as flat
from tests.helpers.tiny import assert_close, draw, forward, is_equal, text, tiny


def build(weights):
    """Returns three recursions of two blocks."""
    return dataclasses.replace(tiny(), weights=weights)


def merged(made, params):
    """Returns the model whose steps have the sums as weights of their own."""
    plan, kind = made.schedule, made.weights
    ranks = np.repeat(kind._ranks(3), 2)
    ends = np.cumsum(ranks)
    core = {slot: at(params["core"][slot], plan.entry(slot)) for slot in made.block.slots}
    for slot in kind.slots:
        for name, pair in params["core"][f"{slot}_lora"].items():
            for step, (rank, end) in enumerate(zip(ranks, ends, strict=True)):
                a, b = (pair[side][end - rank : end].reshape(rank, -1) for side in "ab")
                shape = core[slot][name][step].shape
                added = kind.scale * kind.rank / rank * jnp.einsum("ri,ro->io", a, b)
                core[slot][name] = core[slot][name].at[step].add(added.reshape(shape))
    varies = tuple((slot, "recursion+block") for slot in made.block.slots)
    free = dataclasses.replace(made, varies=varies, weights=Tied())
    return free, {**params, "core": core}


def test_a_step_multiplies_by_the_sum_of_its_own_rank():
    made = build(GradedLora(4, ranks=(1, 2, 4), scale=0.5))
    params = draw(made)
    free, weights = merged(made, params)
    ours = forward(params, text(), made)[0]
    assert_close(ours, forward(weights, text(), free)[0], n=256)
    assert not is_equal(ours, forward(params, text(), build(Tied()))[0])


def test_equal_ranks_are_plain_adapters():
    graded, plain = build(GradedLora(2, ranks=(2, 2, 2))), build(Lora(2))
    params = draw(plain)
    core = dict(params["core"])
    for slot in ("attention_lora", "mlp_lora"):
        pairs = lambda leaf: jnp.moveaxis(leaf["a"], -1, 1), lambda leaf: leaf["b"]
        flat_pair = lambda leaf: leaf.reshape(-1, *leaf.shape[2:])
        core[slot] = {
            name: {side: flat_pair(take(leaf)) for side, take in zip("ab", pairs, strict=True)}
            for name, leaf in core[slot].items()
        }
    ours = forward({**params, "core": core}, text(), graded)[0]
    assert_close(ours, forward(params, text(), plain)[0])


def test_parameters_are_those_of_the_ranks_and_flops_those_of_the_largest():
    count = accounting.unique_parameters
    one, tied = count(build(Lora(1))), count(build(Tied()))
    each = (one - tied) // 6
    assert count(build(GradedLora(4, ranks=(1, 2, 4)))) == tied + 2 * (1 + 2 + 4) * each
    plain, graded = flat(weights=Lora(4)), flat(weights=GradedLora(4))
    assert accounting.forward_flops(graded, 7) == accounting.forward_flops(plain, 7)
    assert_exact(graded, seq_len=7)


@pytest.mark.parametrize(
    ("rank", "ranks"), [(8, [2, 4, 8]), (6, [1, 3, 6]), (1, [1, 1, 1]), (10, [2, 5, 10])]
)
def test_ranks_at_least_halve_from_the_last_recursion_on(rank, ranks):
    assert GradedLora(rank)._ranks(3) == ranks


@pytest.mark.parametrize(
    ("weights", "why"),
    [
        (lambda: GradedLora(4, ranks=(1, 3, 4)), "ranks: got 3 of rank 4"),
        (lambda: GradedLora(4, ranks=(1, 2, 2)), "ranks: got 2 of rank 4"),
        (lambda: GradedLora(4, ranks=(2, 4)), "weights.ranks: got 2 for 3 recursions"),
        (lambda: GradedLora(9), "weights.rank: 9 is more than the width 8 of attention.key"),
    ],
)
def test_ranks_that_cannot_be_are_refused(weights, why):
    with pytest.raises(ValueError, match=why):
        build(weights())
