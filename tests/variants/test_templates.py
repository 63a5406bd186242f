"""Templates of a flat store: matrices of any shapes are sums of slices of one list of numbers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, model
from recursia import params as parameters
from recursia.params import at
from recursia.sharing import matrices
from recursia.sharing.templates import Templates
from recursia.sharing.tied import Tied
from tests.helpers.flops import assert_exact
from tests.helpers.flops import tiny as flat
from tests.helpers.tiny import assert_close, draw, forward, text, tiny

STEPS = 6


def build(budget, num_templates=2, **options):
    made = tiny(sharing_="none", recursions=1, blocks=STEPS)
    return dataclasses.replace(made, weights=Templates(budget, num_templates, **options))


def step(made, params, number):
    """Returns the weights of one step."""
    plan, kind = made.schedule, made.weights.of(made.block_specs)
    core = params["core"].items()
    return kind.bind({slot: at(tree, plan.entry(slot)[number]) for slot, tree in core})


def with_ones(params, made):
    """Returns the parameters with coefficients of 1, so that a matrix is the sum of templates."""
    core = {s: jax.tree.map(jnp.ones_like, t) if s in made.weights.exact else t
            for s, t in params["core"].items()}  # fmt: skip
    return {**params, "core": core}


def vanilla(made, params):
    """Returns the unshared model with the matrices of every step."""
    steps = [step(made, params, number) for number in range(STEPS)]
    core = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)
    return dataclasses.replace(made, weights=Tied()), {**params, "core": core}


def test_one_template_and_the_whole_budget_are_the_vanilla_model():
    """As many numbers, every one of them in one matrix, and the same function of them."""
    made = build(1.0, 1)
    plain, theirs = vanilla(made, params := with_ones(draw(made), made))
    for slot in made.weights.slots:
        own = np.sort(np.ravel(params["core"][f"{slot}_store"]["pieces"]))
        used = [np.ravel(theirs["core"][slot][n]) for n in matrices.named(made.block_specs[slot])]
        assert np.array_equal(own, np.sort(np.concatenate(used)))
    assert_close(forward(params, text(), made)[0], forward(theirs, text(), plain)[0])


def test_one_template_and_a_layers_budget_are_the_tied_model():
    made = build(1 / STEPS, 1, slots=("mlp",))
    params = with_ones(draw(made), made)
    first, last = (step(made, params, number)["mlp"] for number in (0, STEPS - 1))
    assert all(np.array_equal(first[name], last[name]) for name in first)
    assert len({float(first[name].sum()) for name in first}) == len(first)


@pytest.mark.parametrize("budget", [1.0, 0.5])
def test_matrices_that_share_templates_start_orthogonal(budget):
    """At the whole budget two matrices share a pair of templates, at half of it four or five."""
    made = build(budget, slots=("mlp",))
    params = model.init(made, jax.random.key(0))
    rows = np.asarray(params["core"]["mlp_coefficients"]["rows"])
    assert_close((rows**2).sum(-1), np.ones((STEPS, 3)))
    cells = made.schedule.entry("mlp_store").reshape(STEPS, 3, 2)
    by_pair = {}
    for cell, row in zip(cells.reshape(-1, 2), rows.reshape(-1, 2), strict=True):
        by_pair.setdefault(tuple(cell.tolist()), []).append(row)
    for shared in by_pair.values():
        assert len(shared) >= 2 / budget
        assert abs(shared[0] @ shared[1]) < 1e-6
    spread = [np.std(step(made, params, n)["mlp"]["up"]) for n in range(STEPS)]
    assert np.allclose(spread, 0.02, rtol=0.2)


def test_parameters_are_the_budgets_and_flops_the_vanilla_models():
    for budget in (0.3, 0.5):
        made = build(budget)
        plain = dataclasses.replace(made, weights=Tied())
        core = model.specs(made)["core"]
        for slot in made.weights.slots:
            whole = parameters.count(model.specs(plain)["core"][slot])
            sizes = [math.prod(s.shape) for s in matrices.named(made.block_specs[slot]).values()]
            stored = parameters.count(core[f"{slot}_store"])
            assert budget * whole - 2 * max(sizes) <= stored <= budget * whole
    made = flat(weights=Templates(0.5))
    assert_exact(made, seq_len=7)
    theirs = dataclasses.replace(made, weights=Tied())
    assert accounting.forward_flops(made, 7) == accounting.forward_flops(theirs, 7)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (dict(budget=0.0), "budget: got 0"),
        (dict(budget=0.5, num_templates=0), "num_templates: got 0"),
        (dict(budget=0.1, slots=("mlp",)), "store of 'mlp' has 384 numbers, .* have 768; raise"),
        (dict(budget=0.5, slots=("norms",)), "'norms' is not made of matrices"),
    ],
)
def test_a_store_that_is_too_small_is_refused_with_both_numbers(fields, why):
    with pytest.raises(ValueError, match=why):
        build(**fields)
