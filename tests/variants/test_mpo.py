"""Matrices as products of tensors: a shared central tensor, auxiliary tensors of each step."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, model
from recursia.convert import recursive
from recursia.convert.tensors import tied
from recursia.params import at
from recursia.sharing import matrices, tensors
from recursia.sharing.mpo import Mpo
from recursia.sharing.tied import Tied
from recursia.traced_flops import count_flops
from tests.helpers.flops import assert_exact
from tests.helpers.flops import tiny as flat
from tests.helpers.tiny import assert_close, draw, forward, gradient, normal, text, tiny

STEPS = 6


def build(max_bond=0, **options):
    return dataclasses.replace(tiny(**options), weights=Mpo(max_bond=max_bond))


@pytest.mark.parametrize(
    ("width", "published"),
    [
        (768, (4, 4, 4, 4, 3)),
        (3072, (4, 4, 8, 6, 4)),
        (1024, (4, 4, 4, 4, 4)),
        (4096, (4, 4, 8, 8, 4)),
        (17, (1, 1, 17, 1, 1)),
    ],
)
def test_factors_are_the_published_ones(width, published):
    assert tensors.factors(width, 5) == published


def test_a_published_matrix_has_nearly_all_parameters_in_the_shared_tensor():
    shapes = tensors.shapes(tensors.factors(768, 5), tensors.factors(3072, 5), 0)
    assert shapes == [(1, 4, 4, 16), (16, 4, 4, 256), (256, 4, 8, 288), (288, 4, 6, 12),
                      (12, 3, 4, 1)]  # fmt: skip
    sizes = [math.prod(shape) for shape in shapes]
    assert round(sizes[2] / sum(sizes), 3) == 0.941
    assert round(sum(sizes) / (768 * 3072), 3) == 1.063


def matrix_and_factors(count):
    inputs, outputs = tensors.factors(36, count), tensors.factors(40, count)
    return normal(36, 40), inputs, outputs


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_a_matrix_is_the_product_of_its_tensors(count):
    matrix, inputs, outputs = matrix_and_factors(count)
    parts = tensors.split(matrix, inputs, outputs, 0)
    assert [part.shape for part in parts] == tensors.shapes(inputs, outputs, 0)
    assert_close(tensors.rebuilt(parts), matrix, 4 * 40)


def test_cut_at_one_bond_the_error_is_the_root_of_the_squares_left_out():
    """All bonds are cut at once: only where there is one is that the best approximation."""
    matrix, inputs, outputs = matrix_and_factors(2)
    axes = matrix.reshape(*inputs, *outputs).transpose(0, 2, 1, 3)
    values = np.linalg.svd(axes.reshape(inputs[0] * outputs[0], -1), compute_uv=False)
    parts = tensors.split(matrix, inputs, outputs, 5)
    off = np.linalg.norm(tensors.rebuilt(parts) - matrix)
    assert abs(off / np.sqrt((values[5:] ** 2).sum()) - 1) < 1e-4


def test_equal_auxiliary_tensors_are_the_tied_model():
    made = build()
    params = model.init(made, jax.random.key(0))
    kind, core = made.weights.of(made.block_specs), params["core"]
    assert all(np.ptp(leaf, axis=0).max() == 0 for leaf in jax.tree.leaves(core["mlp_auxiliary"]))
    entries = [kind.bind(at(core, 0) | {s: at(core[s], k) for s in kind.slots}) for k in (0, 1)]
    shared = {slot: jax.tree.map(lambda *e: jnp.stack(e), *(e[slot] for e in entries))
              for slot in kind.slots}  # fmt: skip
    plain = dataclasses.replace(made, weights=Tied())
    theirs = {**params, "core": {"norms": core["norms"], **shared}}
    assert_close(forward(params, text(), made)[0], forward(theirs, text(), plain)[0])


@pytest.mark.parametrize("max_bond", [0, 6])
def test_matrices_start_with_their_usual_variance(max_bond):
    wide = dataclasses.replace(tiny().block, embed_dim=64)
    made = dataclasses.replace(build(max_bond), block=wide)
    kind, params = made.weights.of(made.block_specs), model.init(made, jax.random.key(0))
    entry = kind.bind(at(params["core"], 0))
    for slot in kind.slots:
        for name in matrices.named(made.block_specs[slot]):
            assert abs(np.std(entry[slot][name]) / 0.02 - 1) < 0.15, name


@pytest.mark.slow
def test_gradients_are_those_of_the_matrices_by_the_chain_rule():
    made = build(max_bond=5, recursions=1)
    plain, params = dataclasses.replace(made, weights=Tied()), draw(made)
    kind = made.weights.of(made.block_specs)
    bind = lambda core: jax.vmap(lambda entries: kind.bind(entries))(core)
    dense, back = jax.vjp(bind, params["core"])
    theirs = gradient({**params, "core": dense}, text(), plain)[1]["core"]
    assert_close(gradient(params, text(), made)[1]["core"], back(theirs)[0], 8 * 64)


def test_parameters_and_flops_are_closed_forms():
    made = flat(weights=Mpo())
    assert_exact(made, seq_len=7)
    plain = dataclasses.replace(made, weights=Tied())
    assert accounting.forward_flops(made, 7) == accounting.forward_flops(plain, 7)
    kind, block = made.weights, made.block_specs
    specs = [spec for slot in kind.slots for spec in matrices.named(block[slot]).values()]
    shapes = [kind.shapes(spec) for spec in specs]
    once = sum(
        count_flops(jax.make_jaxpr(tensors.product)([jnp.zeros(shape) for shape in each]))
        for each in shapes
    )
    assert accounting.making_flops(made) == 3 * made.schedule.num_steps * once > 0
    sizes = [[math.prod(shape) for shape in each] for each in shapes]
    shared = made.schedule.num_blocks * sum(size[2] for size in sizes)
    private = made.schedule.num_steps * sum(sum(size) - size[2] for size in sizes)
    dense = made.schedule.num_blocks * sum(math.prod(spec.shape) for spec in specs)
    count = accounting.unique_parameters
    assert count(made) - count(plain) == shared + private - dense
    assert accounting.applied_parameters(made) == accounting.applied_parameters(plain)


@pytest.mark.parametrize("kv", ["own", "first_recursion"])
def test_a_dense_model_is_split(kv):
    source = tiny(sharing_="none", recursions=1, blocks=STEPS)
    params, target = draw(source), build(kv=kv)
    how = dict(key=jax.random.key(0))
    split = recursive.recursive(params, source, target, "average", **how)
    shapes = jax.tree.map(lambda spec: spec.shape, model.specs(target))
    assert jax.tree.map(lambda leaf: leaf.shape, split) == shapes
    plain = recursive.recursive(params, source, tied(target), "average", **how)
    ours, theirs = forward(split, text(), target)[0], forward(plain, text(), tied(target))[0]
    assert_close(ours, theirs, 8 * 64)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        (dict(num_factors=1), "num_factors: got 1"),
        (dict(max_bond=-1), "max_bond: got -1"),
        (dict(slots=()), "slots: got [(][)]"),
        (dict(slots=("router",)), "no 'router'; it has norms, attention, mlp"),
        (dict(slots=("norms",)), "'norms' is not made of matrices"),
    ],
)
def test_what_cannot_be_made_of_tensors_is_refused(fields, why):
    with pytest.raises(ValueError, match=why):
        dataclasses.replace(tiny(), weights=Mpo(**fields))
