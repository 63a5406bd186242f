"""Programs do not grow with the number of recursions."""

import jax
import jax.numpy as jnp
import pytest

from recursia import model
from recursia import params as parameters
from recursia.sharing.remat import Remat
from tests.helpers import exhaustive, points
from tests.helpers.tiny import counted, gradient, text, tiny

PRIVATE = (("attention", "recursion+block"), ("norms", "recursion"))
FULL = lambda r: {"capacity": (1.0,) * r}
FALLING = lambda r: {"capacity": tuple(1 - i / (2 * r) for i in range(r))}


def size(mode, recursions, depth, pattern, options, remat="none", **more):
    """Returns the equations and the characters of the program of loss and gradient."""
    config = tiny(depth, pattern, recursions, **options(recursions), **more)
    params = parameters.abstract(model.specs(config))
    tokens = jax.ShapeDtypeStruct((2, 128), jnp.int32)
    traced = gradient.trace(params, tokens, config, mode, remat=Remat(remat))
    return counted(traced.jaxpr.jaxpr, lambda _: 1), len(traced.lower().as_text())


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("mode", "depth", "pattern", "options", "more"),
    [
        ("train", "fixed", "middle_cycle", lambda r: {}, {}),
        ("train", "fixed", "cycle", lambda r: {}, {"kv": "first_recursion"}),
        ("train", "fixed", "cycle", lambda r: {}, {"varies": PRIVATE, "remat": "recursion"}),
        ("train", "fixed", "sequence", lambda r: {}, {}),
        exhaustive("train", "fixed", "sequence", lambda r: {}, {"kv": "first_recursion"}),
        ("train", "fixed", "cycle", lambda r: {}, {"kv": "groups/2"}),
        exhaustive("train", "fixed", "cycle", lambda r: {}, {"kv": "groups/3"}),
        exhaustive("train", "fixed", "cycle", lambda r: {}, {"kv": "upper_half"}),
        ("train", "fixed", "sequence", lambda r: {}, {"kv": "groups/2"}),
        ("eval", "fixed", "cycle", lambda r: {}, {"kv": "groups/2"}),
        exhaustive("eval", "fixed", "cycle", lambda r: {}, {"kv": "groups/3"}),
        ("eval", "fixed", "cycle", lambda r: {}, {"kv": "upper_half"}),
        ("train", "expert_choice", "cycle", FULL, {}),
        ("train", "expert_choice", "cycle", FULL, {"kv": "first_recursion"}),
        ("causal", "expert_choice", "cycle", FALLING, {}),
        ("causal", "expert_choice", "cycle", FALLING, {"kv": "first_recursion"}),
    ],
)
def test_recursions_do_not_lengthen_the_program(mode, depth, pattern, options, more):
    (equations, letters), (more_equations, more_letters) = (
        size(mode, recursions, depth, pattern, options, **more) for recursions in (12, 60)
    )
    assert more_equations == equations
    assert abs(more_letters - letters) < 0.05 * letters  # lengths, and tables of constants


@pytest.mark.parametrize("depth", points.DEPTHS)
def test_recursions_of_no_policy_lengthen_what_decodes(depth):
    def equations(recursions):
        config = points.point(depth_=depth, recursions=recursions)
        params = parameters.abstract(model.specs(config))
        run = lambda params: model.apply(params, text(), config, mode="causal").hidden
        return counted(jax.make_jaxpr(run)(params).jaxpr, lambda _: 1)

    assert equations(12) == equations(60)


def test_blocks_do_not_lengthen_the_program():
    two, eight = (size("train", 4, "fixed", "cycle", lambda r: {}, blocks=k) for k in (2, 8))
    assert two[0] == eight[0]


@pytest.mark.slow
def test_falling_capacities_do_lengthen_it():
    four, eight = (size("train", r, "expert_choice", "cycle", FALLING, blocks=1) for r in (4, 8))
    assert eight[0] > 1.5 * four[0]
