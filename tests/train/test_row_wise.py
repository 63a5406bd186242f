"""Row-wise Adam of tables: by hand, rows that nothing reads stay, and nothing else changes."""

import contextlib
import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from recursia import kinds, model, params
from recursia.architecture import Model
from recursia.blocks.pre_norm import PreNorm
from recursia.depth.fixed import Fixed
from recursia.errors import ConfigError
from recursia.feedforward.product_keys import ProductKeys
from recursia.feedforward.rank_one_experts import RankOneExperts
from recursia.mixers.grouped_query import GroupedQuery
from recursia.optimizers.adamw import AdamW
from recursia.params import Spec, normal
from recursia.workdir import settings_history
from tests.helpers import slow, trainers
from tests.helpers.tiny import VOCAB, assert_close, tiny

STEADY = optax.constant_schedule(1.0)
RATE, B2, EPS, SCALE = 0.1, 0.9, 1e-3, 10.0
TABLE = Spec((6, 4), ("mlp", "embed"), normal(1.0), is_decayed=False, lr_scale=SCALE, is_table=True)
MATRIX = Spec((4, 4), ("embed", "mlp"), normal(1.0))
SIZES = dict(num_keys=4, key_dim=4, retrieval_heads=2, top_k=2)
KINDS = [ProductKeys(value_dim=8, **SIZES), RankOneExperts(**SIZES)]


def memory(kind=KINDS[0]):
    block = PreNorm(8, GroupedQuery(num_heads=2, num_kv_heads=2, head_dim=4), kind)
    return Model(4, block, Fixed(2), sharing="cycle", vocab_size=VOCAB)


def gradients(step, spec):
    """Returns a gradient in which some rows of a table are 0."""
    rng = np.random.default_rng([step, *spec.shape])
    grad = rng.normal(size=spec.shape).astype(np.float32)
    return grad * (rng.random((spec.shape[0], 1)) < 0.5) if spec.is_table else grad


@pytest.mark.parametrize("kind", kinds.names("optimizer"))
def test_tables_take_their_steps_by_hand_and_other_parameters_those_without_it(kind):
    made = kinds.config_class("optimizer", kind)
    config = made(RATE, b2=B2, eps=EPS, weight_decay=0.1, clip_norm=0.0, table_state="rows")
    specs = {
        "table": TABLE,
        "matrix": MATRIX,
        "embed": dataclasses.replace(MATRIX, scales=params.Scales(gradient=0.5)),
    }
    chain, plain = (
        dataclasses.replace(config, table_state=how).transform(specs, STEADY)
        for how in ("rows", "dense")
    )
    weights = params.init(specs, jax.random.key(0))
    other, state, dense = weights, chain.init(weights), plain.init(weights)
    by_hand = np.asarray(weights["table"], np.float64)
    square, count = np.zeros(6), np.zeros(6)
    for step in range(4):
        grads = {name: jnp.asarray(gradients(step, spec)) for name, spec in specs.items()}
        updates, state = chain.update(grads, state, weights)
        weights = optax.apply_updates(weights, updates)
        updates, dense = plain.update(grads, dense, other)
        other = optax.apply_updates(other, updates)
        grad = np.asarray(grads["table"], np.float64)
        read = grad.any(-1)
        assert 0 < read.sum() < len(read)
        count += read
        square = np.where(read, B2 * square + (1 - B2) * (grad**2).mean(-1), square)
        root = np.sqrt(square / (1 - B2 ** np.maximum(count, 1)))
        by_hand -= RATE * SCALE * grad / (root + EPS)[:, None]
    assert_close(weights["table"], by_hand.astype(np.float32))
    for name in ("matrix", "embed"):
        assert (weights[name] == other[name]).all(), name
    assert (weights["table"] != other["table"]).any()


@pytest.mark.parametrize("kind", KINDS, ids=["values", "experts"])
def test_the_state_of_a_table_is_two_numbers_for_a_row(kind):
    specs, config = model.specs(memory(kind)), AdamW(table_state="rows")
    state = jax.eval_shape(config.transform(specs, STEADY).init, params.abstract(specs))
    sizes = [leaf.size for leaf in jax.tree.leaves(state) if leaf.dtype == jnp.float32]
    assert 4 * sum(sizes) == config.state_bytes(specs)
    tables = [spec for spec in jax.tree.leaves(specs) if spec.is_table]
    saved = AdamW().state_bytes(specs) - config.state_bytes(specs)
    assert saved == sum(8 * (np.prod(s.shape) - np.prod(s.shape[:-1])) for s in tables) > 0


@pytest.mark.parametrize(
    "mesh", [{"data": 1, "fsdp": 2, "tensor": 2}, slow({"data": 1, "fsdp": 4})]
)
def test_several_devices_take_the_steps_of_one(mesh):
    trained = {}
    for devices, axes in ((1, {"data": 1, "fsdp": 1}), (4, mesh)):
        made = trainers.of(memory(), devices=devices, optimizer=AdamW(table_state="rows"), **axes)
        state = made.init()
        for step in range(2):
            state, _ = made.step_function(step)(state, made.put(trainers.batch(step)))
        trained[devices] = jax.device_get((state.params, state.opt_state))
    assert_close(*trained.values(), n=4096)


@pytest.mark.parametrize("kind", kinds.names("optimizer"))
def test_a_field_of_which_the_state_depends_makes_another_run(kind):
    specs, base = model.specs(memory()), kinds.config_class("optimizer", kind)()
    state = lambda config: jax.eval_shape(
        config.transform(specs, STEADY).init, params.abstract(specs)
    )
    for name, hint in typing.get_type_hints(type(base)).items():
        for value in {0, 0.5, not getattr(base, name), *typing.get_args(hint)}:
            with contextlib.suppress(ValueError, TypeError):  # of values that it does not take
                changed = dataclasses.replace(base, **{name: value})
                is_alike = str(state(changed)) == str(state(base))
                assert is_alike or f"optimizer.{name}" in settings_history.FIXED, (name, value)


def test_a_model_without_tables_is_refused():
    with pytest.raises(ConfigError, match="table_state: 'rows' is for tables of memory layers"):
        AdamW(table_state="rows").transform(model.specs(tiny()), STEADY)
