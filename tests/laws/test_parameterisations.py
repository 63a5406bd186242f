"""Parameterisations: tables by groups, no change at the base's size, and what size changes.

The coordinate checks are laws of muP: what a layer puts out, and how far a step moves it, do not
depend on the width, nor with CompleteP on the number of recursions. Without them they do.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recursia import coordinates, kinds, model, params
from recursia.depth.integration import Integration
from recursia.errors import ConfigError
from recursia.layers.initial import Init
from recursia.optimizers.adamw import AdamW
from recursia.optimizers.muon import Muon
from recursia.parameterisations.completep import CompleteP
from recursia.parameterisations.layerwise import LayerWise
from recursia.parameterisations.mup import MuP
from recursia.parameterisations.parameterisation import Size, group
from recursia.params import Scales, Spec, ones
from recursia.sharing.lora import Lora
from tests.helpers import points, slow
from tests.helpers.tiny import error, forward, is_equal, text

STEADY = optax.constant_schedule(1.0)
WIDTHS, RECURSIONS = (32, 128), (2, 16)


def scales(made):
    """Returns the factors of each parameter, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(model.specs(made))
    named = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    return {named(path): spec.scales for path, spec in leaves}


@pytest.mark.parametrize("kind", points.PARAMETERISATIONS)
def test_nothing_changes_at_the_size_of_the_base(kind):
    fields = {"base_width": 16, "base_layers": 6}
    made = points.point(parameterisation="standard")
    cls = type(points.small("parameterisation", kind))
    names = {f.name for f in dataclasses.fields(cls)}
    ours = cls(**{name: value for name, value in fields.items() if name in names})
    assert set(scales(dataclasses.replace(made, parameterisation=ours)).values()) == {Scales()}
    assert model.multiplier(dataclasses.replace(made, parameterisation=ours)) is None


@pytest.mark.parametrize(
    ("shape", "axes", "inputs", "changed", "name"),
    [
        ((9, 4), ("vocab", "embed"), 1, {}, "embedding"),
        ((9, 4), ("vocab", "embed"), 1, {"is_readout": True}, "readout"),
        ((4, 6), ("embed", "mlp"), 1, {}, "hidden"),
        ((2, 4, 6), ("heads", None, "embed"), 2, {}, "hidden"),
        ((3, 4, 6), ("experts", "embed", "mlp"), 1, {}, "hidden"),
        ((4, 3), ("embed", None), 1, {"is_matrix": False}, "output"),
        ((2, 4), (None, "embed"), 1, {"is_matrix": False}, "input"),
        ((4,), (None,), 1, {"is_decayed": False}, "vector"),
        ((3, 4), (None, None), 1, {}, "vector"),
    ],
)
def test_the_group_of_a_parameter_follows_from_its_spec(shape, axes, inputs, changed, name):
    spec = Spec(shape, axes, ones, inputs=inputs, **changed)
    assert group(spec) == group(spec.stack((5,), (None,))) == name


def test_the_tables_by_hand():
    m, l, half = 4.0, 9.0, 0.5
    wide, mup, complete = Size(m), MuP(8), CompleteP(8, 1, half)
    assert mup.row("hidden", wide) == Scales(init=1 / 2, rate=1 / 4)
    assert mup.row("output", wide) == Scales(init=1 / 4, rate=1 / 4)
    assert mup.row("embedding", wide) == mup.row("vector", wide) == Scales()
    assert mup.logits(wide) == complete.logits(wide) == 1 / 4
    assert complete.row("hidden", wide) == Scales(1 / 2, 1 / 4, decay=4, gradient=1 / 4)
    assert complete.row("output", wide) == Scales(1 / 4, 1 / 4, decay=4)
    assert complete.row("embedding", wide) == Scales(gradient=1 / 4)
    assert complete.in_block(Size(m, l), 1) == Scales(rate=1 / 3, gradient=1 / 3)
    assert complete.branch(Size(m, l)) == 1 / 3
    assert CompleteP(8, 1).in_block(Size(m, l), 1) == Scales(gradient=1 / 9)
    assert CompleteP(8, 1).in_block(Size(m, l), 9) == Scales()
    assert CompleteP(8, 1, 0.0).in_block(Size(m, l), 1) == Scales(rate=1 / 9)
    assert MuP(8, scales_routers=False).row("output", wide) == Scales()
    plain = CompleteP(8, 1, half, has_one_eps=True, scales_routers=False)
    assert plain.row("output", wide) == complete.row("embedding", wide)
    assert complete.outside(Size(m, l)) == Scales()
    assert plain.outside(Size(m, l)) == Scales(gradient=1 / 3)
    by_layer = LayerWise(8, hidden=0.5)
    assert by_layer.row("hidden", wide) == Scales(rate=half)
    assert by_layer.row("readout", wide) == Scales(rate=1 / 4)
    assert by_layer.row("embedding", wide) == Scales()


def test_gradients_of_a_bank_whose_entries_are_used_differently_have_a_size_each():
    table = ((0, 1), (0, 2), (0, 3))
    made = points.point(varies=(("mlp", table),), parameterisation="standard")
    made = dataclasses.replace(made, parameterisation=CompleteP(16, 2))
    assert made.schedule.uses("mlp").tolist() == [3, 1, 1, 1]
    sizes = scales(made)["core.mlp.up"].gradient
    assert np.allclose(sizes, [1, 1 / 3, 1 / 3, 1 / 3])
    specs = {"w": Spec((4, 2, 3), (None, "embed", "mlp"), ones, bank=1)}
    specs = params.mark(specs, scales=Scales(gradient=sizes))
    chain = AdamW(1.0, eps=1e-3, clip_norm=0.0, weight_decay=0.0).transform(specs, STEADY)
    zeros, grad = {"w": jnp.zeros((4, 2, 3))}, np.full((4, 2, 3), 1e-3, np.float32)
    (moved,) = jax.tree.leaves(chain.update({"w": jnp.asarray(grad)}, chain.init(zeros), zeros)[0])
    assert np.allclose(-moved[:, 0, 0], [1e-3 / (1e-3 + 1e-3 * size) for size in sizes], rtol=1e-5)


@pytest.mark.parametrize("optimizer", [AdamW, Muon])
def test_factors_of_rate_and_decay_are_of_one_parameter_and_clipping_is_of_all(optimizer):
    spec = Spec((4, 3), ("embed", "mlp"), ones)
    chosen = dataclasses.replace(spec, scales=Scales(rate=0.5, decay=3.0))
    grads = {
        n: jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32) for n in "ab"
    }
    weights = jax.tree.map(jnp.ones_like, grads)

    def moved(specs, decay):
        options = {"weight_decay": decay, "clip_norm": 1e-9, "eps": 1e-10}
        chain = optimizer(0.1, **options).transform(specs, STEADY)
        return chain.update(grads, chain.init(weights), weights)[0]

    both, plain = {"a": spec, "b": chosen}, {"a": spec, "b": spec}
    for decay in (0.0, 0.2):
        ours, theirs = moved(both, decay), moved(plain, decay)
        assert np.array_equal(ours["a"], theirs["a"])
        more = 0.1 * 0.2 * 2 if decay else 0.0
        assert np.allclose(ours["b"], 0.5 * (theirs["b"] - more), atol=1e-6)


def test_adapters_are_matrices_from_and_to_few_features():
    made = points.point(weights="lora", parameterisation="mup")
    assert isinstance(made.weights, Lora) and made.size == Size(2.0)
    found = scales(made)
    assert found["core.mlp_lora.up.a"] == Scales(init=0.5, rate=0.5)
    assert found["core.mlp_lora.up.b"] == Scales()


def test_a_shallower_run_keeps_the_multiplier_of_training():
    made = points.point(parameterisation="completep")
    weights = model.init(made, jax.random.key(0))
    states = forward(weights, text(), made)[1].states
    small, less = model.at_depth(made, weights, 2)
    assert model.multiplier(small) == model.multiplier(made) == np.float32(1 / 6)
    assert error(forward(less, text(), small)[1].states[-1], states[1]) < 1e-5


def test_the_multiplier_of_depth_is_the_size_of_a_step():
    complete = points.point(parameterisation="completep")
    plain = points.point(depth_="integration")
    steps = dataclasses.replace(plain, depth=Integration(3, horizon=0.5))
    weights = model.init(plain, jax.random.key(0))
    same = dataclasses.replace(complete, parameterisation=CompleteP(16, 1))
    ours, theirs = (forward(weights, text(), config) for config in (same, steps))
    assert is_equal(ours[0], theirs[0])


def growths(kind, axis, sizes, **chosen):
    """Returns the powers of size by place: of entries at first, and of what steps change."""
    base = {"base_width": 16, "base_layers": 2 * RECURSIONS[0]}
    made = points.point("pre_norm", recursions=RECURSIONS[0], num_blocks=2, **chosen)
    std = 0.02 if axis == "width" else 0.25
    init = lambda part: dataclasses.replace(part, init=Init(std=std))
    block = dataclasses.replace(
        made.block, mixer=init(made.block.mixer), feedforward=init(made.block.feedforward)
    )
    cls = kinds.config_class("parameterisation", kind)
    names = {f.name for f in dataclasses.fields(cls)}
    ours = cls(**{name: value for name, value in base.items() if name in names})
    made = dataclasses.replace(made, block=block, parameterisation=ours)
    adam = AdamW(5e-3, weight_decay=0.0, eps=1e-12, clip_norm=0.0)
    found = coordinates.along(made, adam, axis, sizes, num_steps=4, shape=(4, 16))
    return {place: coordinates.growth(found, place) for place in found[sizes[0]]}


@pytest.mark.slow
@pytest.mark.parametrize("feedforward", ["swiglu", slow("softmax_moe")])
def test_with_mup_nothing_that_steps_change_grows_with_width(feedforward):
    ours, plain = (
        growths(k, "width", WIDTHS, feedforward=feedforward) for k in ("mup", "standard")
    )
    for place in ("core output", "logits"):
        assert abs(ours[place][1]) < 0.2 and ours[place][0] < 0.1
        assert plain[place][1] > 0.4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["completep", "standard"])
def test_with_completep_nothing_grows_with_recursions(kind):
    grown = growths(kind, "recursions", RECURSIONS)
    if kind == "completep":
        assert all(abs(power) < 0.2 for place in grown.values() for power in place)
    else:
        assert min(grown["core output"]) > 0.4


PARTS = ("mpo", "templates", "fold")


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ({"mixer": "switch_head", "feedforward": "sigma_moe"}, "initial scales by width"),
        ({"block_": "post_norm"}, "the stream itself"),
        *(({"weights": kind}, "parts that they are made of") for kind in PARTS),
        ({"recursions": 0}, "no deeper"),
    ],
)
def test_what_it_cannot_scale_is_refused_with_the_reason(chosen, reason):
    with pytest.raises(ValueError, match=reason):
        if "recursions" in chosen:
            made = points.point()
            dataclasses.replace(made, parameterisation=CompleteP(16, made.num_layers + 1))
        points.point(**{"block_": "pre_norm", **chosen}, parameterisation="completep")


def test_a_width_that_heads_do_not_follow_is_refused():
    with pytest.raises(ConfigError, match=r"num_kv_heads 2 would be 2\.5"):
        coordinates.along(points.point(), AdamW(), "width", (16, 20))
