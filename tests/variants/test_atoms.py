"""Atoms: a step's matrix is a combination of shared ones, and nothing else changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, config, model
from recursia import params as parameters
from recursia.convert import recursive
from recursia.params import at
from recursia.sharing.atoms import Atoms
from recursia.sharing.tied import Tied
from tests.helpers.flops import assert_exact
from tests.helpers.flops import tiny as flat
from tests.helpers.tiny import VOCAB, assert_close, draw, forward, gradient, is_equal, text, tiny

KEY = jax.random.key(0)
STEPS, NAMES = 6, ("query", "key", "value")
PRIVATE = dict.fromkeys(("norms", "attention", "mlp"), "recursion+block")


def build(num_atoms, **options):
    """Returns six layers of their own but for queries, keys and values, of so many atoms."""
    varies = tuple((PRIVATE | options).items())
    return dataclasses.replace(tiny(varies=varies), weights=Atoms(num_atoms))


def with_coefficients(params, table):
    core = params["core"] | {"attention_coefficients": dict.fromkeys(NAMES, jnp.asarray(table))}
    return {**params, "core": core}


def atoms_of(params):
    """Returns the atoms of each matrix; they are one entry."""
    return at(params["core"]["attention_atoms"], 0)


def as_banks(params):
    """Returns the parameters of the model whose banks are the atoms, and the table of steps."""
    core, atoms = dict(params["core"]), atoms_of(params)
    coefficients = core.pop("attention_coefficients")
    del core["attention_atoms"]
    return {**params, "core": {**core, "attention": core["attention"] | atoms}}, coefficients


def test_one_hot_coefficients_tie_to_the_bit():
    """Queries, keys, values and the rest of attention are one slot: all of it is tied by hand."""
    entry = np.array([0, 1, 1, 0, 1, 0])
    combined = build(2, attention=tuple(map(tuple, entry.reshape(3, 2).tolist())))
    params = with_coefficients(draw(combined), np.eye(2, dtype=np.float32)[entry])
    tied = dataclasses.replace(combined, weights=Tied())
    shared, _ = as_banks(params)
    assert is_equal(forward(params, text(), combined)[0], forward(shared, text(), tied)[0])


def test_as_many_atoms_as_steps_and_coefficients_of_the_identity_are_the_vanilla_model():
    combined = build(STEPS)
    params = with_coefficients(draw(combined), np.eye(STEPS, dtype=np.float32))
    plain = dataclasses.replace(combined, weights=Tied())
    own, _ = as_banks(params)
    assert is_equal(forward(params, text(), combined)[0], forward(own, text(), plain)[0])


def unrolled(combined, params):
    """Returns the model whose steps have the sums, of float32, as matrices of their own."""
    shared, coefficients = as_banks(params)
    made = {
        name: jnp.einsum("sa,a...->s...", coefficients[name], atoms_of(params)[name])
        for name in NAMES
    }
    core = shared["core"] | {"attention": shared["core"]["attention"] | made}
    return dataclasses.replace(combined, weights=Tied()), {**shared, "core": core}


def test_a_step_multiplies_by_the_sum_and_so_does_the_unrolled_model():
    made = build(2)
    plain, own = unrolled(made, params := draw(made))
    assert_close(forward(params, text(), made)[0], forward(own, text(), plain)[0])
    layers = recursive.layers(params, made)
    assert_close(layers, recursive.layers(own, plain))
    assert len(layers) == STEPS and set(layers[0]) == set(plain.block.slots)


def test_the_gradient_of_an_atom_is_the_weighted_sum_over_steps():
    made = build(2)
    plain, own = unrolled(made, params := draw(made))
    ours = gradient(params, text(), made)[1]["core"]
    theirs = gradient(own, text(), plain)[1]["core"]["attention"]
    atoms, coefficients = atoms_of(params), params["core"]["attention_coefficients"]
    for name in NAMES:
        summed = jnp.einsum("sa,s...->a...", coefficients[name], theirs[name])
        assert_close(ours["attention_atoms"][name][0], summed, n=8 * 64)
        dots = jnp.einsum("s...,a...->sa", theirs[name], atoms[name])
        assert_close(ours["attention_coefficients"][name], dots, n=8 * 64)


def test_parameters_are_those_of_the_atoms_and_a_token_meets_the_vanilla_models():
    made = build(2)
    plain = dataclasses.replace(made, weights=Tied())
    matrices = sum(s.size for s in jax.tree.leaves(at(draw(plain)["core"]["attention"], 0)))
    matrices -= draw(plain)["core"]["attention"]["out"][0].size
    saved = (STEPS - 2) * matrices - len(NAMES) * STEPS * 2
    count = accounting.unique_parameters
    assert count(made) == count(plain) - saved
    assert accounting.applied_parameters(made) == accounting.applied_parameters(plain)


def test_atoms_a_third_of_the_steps_halve_attention():
    typed = {"model.num_layers": "9", "model.weights.num_atoms": "3", "block.num_kv_heads": "4"}
    run = config.load("masa:tiny", typed)
    size = lambda c: sum(
        parameters.count(tree) for s, tree in model.specs(c)["core"].items() if "attention" in s
    )
    plain = dataclasses.replace(run.model, weights=Tied()).sized(VOCAB)
    assert size(run.model.sized(VOCAB)) == size(plain) // 2 + 9 * 3 * 3  # coefficients


def test_flops_are_exact_and_combining_is_no_product():
    made = flat(weights=Atoms(2))
    assert_exact(made, seq_len=7)
    plain = dataclasses.replace(made, weights=Tied())
    assert accounting.forward_flops(made, 7) == accounting.forward_flops(plain, 7)


def test_coefficients_stay_float32():
    core = model.specs(build(2))["core"]
    assert all(s.is_exact for s in jax.tree.leaves(core["attention_coefficients"]))
    assert not any(s.is_exact for s in jax.tree.leaves(core["attention_atoms"]))


def dense_and_converted(num_atoms):
    dense = tiny(sharing_="none", recursions=1, blocks=STEPS)
    made = build(num_atoms)
    params = draw(dense)
    return dense, params, made, recursive.recursive(params, dense, made, "first", key=KEY)


def test_as_many_atoms_as_layers_are_the_dense_model_to_the_bit():
    dense, params, made, converted = dense_and_converted(STEPS)
    assert is_equal(recursive.layers(params, dense), recursive.layers(converted, made))


def test_fewer_atoms_lose_the_singular_values_that_are_dropped():
    dense, params, made, converted = dense_and_converted(2)
    theirs, ours = recursive.layers(params, dense), recursive.layers(converted, made)
    for name in NAMES:
        stacked = [np.stack([x["attention"][name].ravel() for x in ls]) for ls in (theirs, ours)]
        lost = np.linalg.svd(stacked[0].astype(np.float64), compute_uv=False)[2:]
        np.testing.assert_allclose(((stacked[1] - stacked[0]) ** 2).sum(), (lost**2).sum(), 1e-4)
    assert is_equal(*([x["attention"]["out"] for x in ls] for ls in (theirs, ours)))


def test_atoms_that_vary_with_the_recursion_are_nearest_to_its_layers():
    dense = tiny(sharing_="none", recursions=1, blocks=STEPS)
    varies = tuple({**PRIVATE, "attention_atoms": "recursion"}.items())
    made = dataclasses.replace(tiny(), weights=Atoms(2), varies=varies)
    converted = recursive.recursive(params := draw(dense), dense, made, "first", key=KEY)
    assert is_equal(recursive.layers(params, dense), recursive.layers(converted, made))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (dict(num_atoms=0), "num_atoms: got 0"),
        (dict(num_atoms=2, names=()), "names: got [(][)]"),
        (dict(num_atoms=2, slot="router"), "no 'router'; it has norms, attention, mlp"),
        (dict(num_atoms=2, names=("gate",)), "no matrix 'gate'; it has query, key, value, out"),
    ],
)
def test_what_cannot_be_combined_is_refused(fields, why):
    with pytest.raises(ValueError, match=why):
        dataclasses.replace(tiny(), weights=Atoms(**fields))
