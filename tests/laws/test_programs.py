"""What every model's program multiplies and in which dtypes, read off its trace."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from recursia import accounting, model, params
from recursia.sharing.remat import Remat
from recursia.traced_flops import count_flops
from tests.helpers import exhaustive, points

BATCH, LENGTH = 2, 13
UNITS = ("none", "block", "recursion")
TOGETHER, EACH = points.combined(), points.every()
POINTS = {**EACH, **TOGETHER}
# Each point with one unit of rematerialisation, so that every unit meets points of every axis.
MET = [(name, UNITS[i % 3]) for i, name in enumerate(TOGETHER)]
REST = [exhaustive(name, unit) for name in POINTS for unit in UNITS if (name, unit) not in MET]
ROUTED = [(depth, plan) for depth in points.DEPTHS for plan in points.PLANS]


is_spec = lambda leaf: isinstance(leaf, params.Spec)


def arguments(config):
    """Returns the shapes of weights and tokens."""
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32)
    return params.abstract(model.specs(config)), tokens


def programs(config, unit):
    """Returns the programs of loss, and of loss and gradient, and what the latter gives."""

    def run(weights, tokens, reads_all=True):
        out = model.apply(weights, tokens, config, mode="train", step=step, remat=Remat(unit))
        is_weighed = reads_all and out.aux.exit_weights is not None
        logits = model.logits(weights, out.aux.states if is_weighed else out.hidden, config)
        nats = jax.nn.logsumexp(logits, -1).mean() + sum(out.aux.losses.values())
        nats += jnp.sum(out.aux.exit_weights) if is_weighed else 0  # the gate's gradient
        return nats, (out.hidden, out.aux, logits)

    step = jnp.int32(0)
    forward = jax.make_jaxpr(functools.partial(run, reads_all=False))(*arguments(config))
    graded = jax.make_jaxpr(jax.value_and_grad(run, has_aux=True), return_shape=True)
    both, given = graded(*arguments(config))
    return forward, both, given


def assert_flops_are_exact(config, unit, forward, both):
    """Asserts that closed forms equal the counts of the traced programs."""
    once = count_flops(forward)
    assert BATCH * accounting.forward_flops(config, LENGTH) == once
    executed = BATCH * accounting.executed_training_flops(config, LENGTH, Remat(unit))
    assert BATCH * accounting.training_flops(config, LENGTH) < executed
    count = count_flops(both)
    if getattr(config.depth, "sampling", None) == "aux_router":  # no product towards its input
        assert executed > count
    else:
        assert executed == count


def assert_entries_add_up_once(config, graded):
    """Asserts that rows of a weight's gradient are scattered to indices that differ.

    Tables are another matter, and banks of which a step uses several entries.

    A GPU adds to one index several times in another order each time, or sorts all numbers first.
    """
    several = {slot for slot, table in config.schedule.entries if np.ndim(table) > 2}
    weights, tables = set(), set()
    for path, spec in jax.tree_util.tree_leaves_with_path(model.specs(config), is_leaf=is_spec):
        names = {getattr(key, "key", None) for key in path}
        may_repeat = spec.is_table or names & {"embed", *several}
        (tables if may_repeat else weights).update((spec.shape, spec.shape[1:]))
    for scatter in equations(graded, "scatter-add"):
        into, _, rows = (operand.aval for operand in scatter.invars)
        if into.shape in weights - tables and rows.size > 100:  # a report may be of such a shape
            assert scatter.params["unique_indices"], into.shape


def equations(jaxpr, name):
    """Yields the equations of a primitive, in inner programs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner, name)


@pytest.mark.few(6)
@pytest.mark.parametrize(("name", "unit"), [*MET, *REST])
def test_flops_are_exact_and_no_dtype_is_promoted_in_silence(name, unit):
    config = dataclasses.replace(POINTS[name], dtype="bfloat16")
    with jax.numpy_dtype_promotion("strict"):
        forward, both, ((nats, (hidden, aux, logits)), grads) = programs(config, unit)
        decode = lambda weights, tokens: model.apply(weights, tokens, config, mode="causal")
        decoded = jax.eval_shape(decode, *arguments(config)).hidden
    assert hidden.dtype == decoded.dtype == jnp.bfloat16
    assert aux.states is None or aux.states.dtype == jnp.bfloat16
    measured = jax.tree.leaves((nats, logits, aux.losses, aux.metrics, aux.exit_weights, grads))
    assert {leaf.dtype for leaf in measured} == {jnp.dtype("float32")}
    assert_entries_add_up_once(config, both.jaxpr)
    if getattr(config.depth, "sampler", "fixed") == "fixed":  # else the length of a loop is drawn
        assert_flops_are_exact(config, unit, forward, both)


@pytest.mark.parametrize(("depth", "plan"), ROUTED)
def test_flops_are_exact_for_every_policy_and_kv_plan(depth, plan):
    try:
        config = points.point(depth_=depth, kv_sharing=plan)
    except ValueError as refusal:
        assert "kv_sharing" in str(refusal)
        return
    forward, both, _ = programs(config, "none")
    assert_flops_are_exact(config, "none", forward, both)
