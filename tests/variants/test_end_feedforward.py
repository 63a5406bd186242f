"""Blocks of prelude and coda with another feed-forward than those of the core."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from recursia import config, model, params, scaling
from recursia.convert import export, fitting, recursive, unroll
from recursia.errors import ConfigError
from recursia.feedforward.glu_moe import GluMoE
from recursia.feedforward.relu import ReLU
from recursia.feedforward.swiglu import SwiGLU
from recursia.layers.attention import Context
from recursia.layers.norm import normalise
from recursia.params import at
from recursia.train import balancing
from tests.helpers import points
from tests.helpers.refusals import refused
from tests.helpers.tiny import (
    BATCH,
    LENGTH,
    assert_close,
    draw,
    forward,
    is_equal,
    normal,
    text,
)

DENSE = SwiGLU(mlp_dim=10)
WHERE = Context(jnp.broadcast_to(jnp.arange(LENGTH), (BATCH, LENGTH)))
point = functools.partial(points.point, "pre_norm", recursions=1, sharing="none", ends="swiglu")


def test_no_feedforward_of_the_ends_is_that_of_the_core():
    plain = points.point("pre_norm", feedforward="glu_moe", sharing="middle_cycle")
    named = dataclasses.replace(plain, end_feedforward=plain.block.feedforward)
    assert named.end_block == plain.end_block == plain.block
    assert named.branches == plain.branches
    shapes = [params.abstract(model.specs(each)) for each in (plain, named)]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
    other = dataclasses.replace(plain, end_feedforward=DENSE)
    assert set(model.specs(other)["prelude"]) == {"norms", "attention", "mlp"}
    assert model.specs(other)["coda"]["mlp"]["up"].shape == (1, 16, 10)


@pytest.mark.parametrize("kind", ["lagged_moe", "ahead_moe", "recurrent_moe"])
def test_a_token_hands_on_what_the_cores_router_reads(kind):
    """Lagged: what the dense layer read; ahead: what the first layer read; else what there was."""
    made = point(feedforward=kind)
    weights, block = at(draw(made)["prelude"], 0), made.end_block
    x = normal(BATCH, LENGTH, 16)
    before = 1 + normal(BATCH, LENGTH, made.block.carried_dim, seed=1)
    y = block.apply(weights, jnp.concatenate([x, before], -1), WHERE)[0]
    norm = lambda x, name: normalise(x, weights["norms"][name], block.norm_eps)
    h = norm(x, "attention")
    x = x + block.mixer.apply(weights, h, h, WHERE)[0]
    h = norm(x, "mlp")
    glu = jax.nn.silu(h @ weights["mlp"]["gate"]) * (h @ weights["mlp"]["up"])
    assert_close(block.states(y), x + glu @ weights["mlp"]["down"], n=128)
    assert_close(y[..., 16:], h if kind == "lagged_moe" else before)
    first = block.apply(weights, made.block.opened(normal(BATCH, LENGTH, 16)), WHERE)[0]
    wanted = h if kind in ("lagged_moe", "ahead_moe") else 0 * before
    assert_close(first[..., 16:], wanted)


def test_the_first_experts_are_known_before_their_layer_runs():
    """Its own attention changes none of them; the dense layer before it changes some."""
    made = point(feedforward="lagged_moe")

    @jax.jit
    def taken(weights):
        report = model.apply(weights, text(), made, mode="eval", is_by_token=True).aux.report
        return report["router"].taken[0, 0]

    def turned(stack):
        attention = weights[stack]["attention"]
        other = {**attention, "out": -attention["out"]}
        return {**weights, stack: {**weights[stack], "attention": other}}

    weights = draw(made)
    assert is_equal(taken(turned("core")), taken(weights))
    assert not is_equal(taken(turned("prelude")), taken(weights))


def test_losses_are_those_of_core_and_ends_and_metrics_have_names_of_their_own():
    experts = dict(num_experts=4, top_k=2, expert_dim=6)

    @functools.cache
    def read(core, ends):
        made = points.point("pre_norm", feedforward="glu_moe", sharing="middle_cycle")
        block = made.block.with_feedforward(GluMoE(**experts, balance_loss_weight=core))
        own = GluMoE(num_experts=3, top_k=1, expert_dim=6, balance_loss_weight=ends)
        made = dataclasses.replace(made, block=block, end_feedforward=own)
        aux = jax.jit(lambda w: model.apply(w, text(), made, mode="train").aux)(draw(made))
        return float(aux.losses["expert_balance"]), aux.metrics

    both, metrics = read(0.5, 0.25)
    assert_close(both, read(0.5, 0.0)[0] + read(0.0, 0.25)[0])
    assert read(0.0, 0.25)[0] > 0.1 < read(0.5, 0.0)[0]
    uneven = [float(metrics[name]) for name in ("expert_unevenness", "end_expert_unevenness")]
    assert uneven[0] != uneven[1]
    assert_close(both, 0.5 * 2 * uneven[0] + 0.25 * 2 * uneven[1])  # two routers each


def test_selection_biases_of_ends_follow_the_use_of_their_own_experts():
    made = points.point("pre_norm", sharing="middle_cycle", feedforward="glu_moe")
    own = GluMoE(num_experts=3, top_k=1, expert_dim=6, has_selection_bias=True, bias_rate=0.25)
    made = dataclasses.replace(made, end_feedforward=own)
    weights = draw(made)
    metrics = {f"end_expert_share_{n}": jnp.eye(3)[n] for n in range(2)}
    trains = jax.tree.map(lambda _: True, weights)
    after = balancing.after_step(weights, metrics, made, trains)
    for number, end in enumerate(("prelude", "coda")):
        moved = after[end]["selection_bias"] - weights[end]["selection_bias"]
        assert_close(moved[0], 0.25 * (1 - 2 * jnp.eye(3)[number]))
    assert is_equal(after["core"], weights["core"])


REFUSED = {
    "end_feedforward: is of prelude and coda": dict(prelude=0, end_feedforward=DENSE),
    "end_sizes: got mlp_dim, and end_feedforward has": dict(end_sizes=(("mlp_dim", 8),)),
    "end_feedforward: hands numbers on": dict(ends="lagged_moe"),
    "end_feedforward: hands numbers on from": dict(ends="ahead_moe", feedforward="lagged_moe"),
    "end_feedforward: mixer: uses the weights of slot": dict(
        mixer="pre_mixing", feedforward="glu_moe"
    ),
    "end_sizes: this feed-forward hands numbers on": dict(
        feedforward="lagged_moe", end_sizes=(("embed_dim", 8),)
    ),
    "scales by width, and so does the end_feedforward": dict(
        parameterisation="mup", end_feedforward=points.small("feedforward", "sigma_moe")
    ),
}


@pytest.mark.parametrize(("message", "options"), REFUSED.items(), ids=REFUSED)
def test_what_does_not_go_with_the_core_is_refused(message, options):
    with pytest.raises(ValueError, match=message):
        point(**{"feedforward": "swiglu", **options})


def test_a_model_with_dense_ends_is_unrolled_and_others_do_not_start_from_it():
    looped = points.point("pre_norm", feedforward="glu_moe", sharing="cycle", ends="swiglu")
    layers = looped.schedule.num_steps
    free = point(feedforward="glu_moe", num_blocks=layers)
    weights = draw(looped)
    made = recursive.recursive(weights, looped, free, "stepwise", key=jax.random.key(0))
    assert_close(forward(made, text(), free)[0], forward(weights, text(), looped)[0], n=256)
    again, new = fitting.fitting(made, free, looped, "stepwise", key=jax.random.key(0))
    assert not new and is_equal(again["prelude"], weights["prelude"])
    alike = dataclasses.replace(free, end_feedforward=None)
    with refused(ValueError, "end_feedforward: got none", "has SwiGLU"):
        recursive.recursive(made, free, alike, "stepwise", key=jax.random.key(0))
    with refused(ConfigError, "config.end_feedforward"):
        unroll.unrolled(looped)
    plain = points.point("pre_norm", feedforward="relu", ends="swiglu")
    with refused(ConfigError, "config.end_feedforward", "'swiglu'", "one kind of blocks"):
        export.export(plain, {}, None, "recursive", 8, None)


def test_hidden_widths_of_the_ends_grow_with_the_cores():
    made = point(feedforward="glu_moe")
    wider = scaling.with_widths(made, expert_dim=12)
    assert (wider.block.feedforward.expert_dim, wider.end_feedforward.mlp_dim) == (12, 48)
    assert scaling.with_widths(made, num_heads=2).end_feedforward.mlp_dim == 24


def test_it_is_typed_as_any_kind_and_none_takes_it_away():
    typed = {"end_feedforward": "relu", "end_feedforward.mlp_dim": "80"}
    run = config.load("megrez2:tiny_dense", typed)
    assert run.model.end_feedforward == ReLU(mlp_dim=80)
    assert config.build(type(run), config.to_dict(run), "config") == run
    plain = config.change(run, {"end_feedforward": "none"})
    assert plain.model.end_feedforward is None
    assert config.change(plain, typed) == run
    listed = {field.path: field for field in config.fields(plain, "end_feedforward")}
    assert list(listed) == ["model.end_feedforward.kind"]
    assert listed["model.end_feedforward.kind"].value == "none"
    with refused(
        ConfigError, "model.end_feedforward.mlp_dim", "set config.model.end_feedforward.k"
    ):
        config.change(plain, {"end_feedforward.mlp_dim": "80"})
