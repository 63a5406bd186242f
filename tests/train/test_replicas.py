"""Replicas that train apart: the equations by hand, and what moves between them."""

import dataclasses
import functools
import itertools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import batch as whole_batch
from recursia import budget, config, fragments, model, params, sharding
from recursia.errors import CheckpointError, ConfigError
from recursia.params import Spec
from recursia.preflight import collectives, hlo, program
from recursia.replicas import Replicas
from recursia.train import exchange, replicated
from recursia.train.placement import State
from recursia.train.replicated import trainer_of
from recursia.train.step import Trainer
from recursia.workdir import directory, settings_history
from recursia.workdir.checkpoint import Checkpoints
from tests.helpers import slow
from tests.helpers.batches import whole_rows
from tests.helpers.refusals import refused
from tests.helpers.runs import tiny_run
from tests.helpers.tiny import is_equal
from tests.helpers.trainers import FOLDER, LENGTH, ROWS, VOCAB

# An exchange after every step of a single replica that takes the result whole.
PLAIN = {
    "count": 1,
    "every_steps": 1,
    "num_fragments": 1,
    "delay": 0,
    "mix": 0.0,
    "outer_learning_rate": 1.0,
    "outer_momentum": 0.0,
    "exchange": "float32",
}
TYPED = {"replicas.count": "2", "replicas.every_steps": "10"}
TWO = {"count": 2, "every_steps": 5, "num_fragments": 2, "delay": 2, "exchange": "float32"}


def trainer(devices=1, mesh=(), optimizer=(), **replicas):
    """Returns the trainer of a tiny run with replicas over so many devices."""
    fields = {"learning_rate": 0.01, **dict(optimizer)}
    sizes = {"data": 1, **dict(mesh)}
    run = tiny_run(FOLDER, "fixed", replicas=replicas, mesh=sizes, optimizer=fields)
    where = sharding.make_mesh(run.mesh, jax.devices()[:devices])
    return trainer_of(run, run.model.sized(VOCAB), where)


def batch(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (ROWS, LENGTH + 1), dtype=np.int32)
    return whole_rows(tokens, rng.uniform(0.5, 1, (ROWS, LENGTH)).astype(np.float32))


def after(made, steps, state=None, first=0, rows=batch):
    """Returns the state after steps `first` + 1 to `steps`, on the host."""
    state = made.init() if state is None else state
    for step in range(first, steps):
        state, metrics = made.step_function(step)(state, made.put(rows(step)))
    return jax.device_get((state, metrics))


noise = params.normal(0.5)
ENTRY = Spec((4, 3), ("embed", None), noise)
SPECS = {
    "embed": {"table": Spec((6, 4), ("vocab", "embed"), noise)},
    "core": {"mlp": {"up": ENTRY.stack((3,), (None,))}, "scale": Spec((3,), (None,), noise)},
    "coda": {"norm": Spec((5,), (None,), params.ones).stack((2,), (None,))},
}


@pytest.fixture
def simple(monkeypatch):
    """A few parameters, and steps of a replica that are one line of arithmetic on its own rows."""
    monkeypatch.setattr(model, "specs", lambda config: SPECS)

    def step(trainer, config, state, rows, teacher, limit, first):
        shift = whole_batch.total(rows["weights"].sum()) / rows["weights"].shape[0]
        moved = jax.tree.map(lambda x: moving(x, shift), state.params)
        return State(state.step + 1, moved, state.opt_state), {"loss": shift}

    monkeypatch.setattr(replicated, "train_step", step)
    return lambda devices=1, mesh=(), **how: made(devices, tuple(mesh), tuple(how.items()))


@functools.cache
def made(devices, mesh, how):
    """Returns a trainer that several tests share: of what `simple` makes of it."""
    return trainer(devices, mesh, **{**TWO, **dict(how)})


def moving(x, shift):
    return 0.9 * x + 1e-3 * shift * (1 + x)


@pytest.mark.parametrize("kind", ["adamw", slow("muon"), slow("adam_atan2"), slow("adamw_to_muon")])
def test_one_replica_that_takes_every_result_whole_is_the_plain_optimizer(kind):
    plain = trainer(optimizer={"kind": kind})
    assert type(plain) is Trainer
    want, numbers = after(plain, 3)
    ours, metrics = after(trainer(optimizer={"kind": kind}, **PLAIN), 3)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8)
    jax.tree.map(close, ours.params, want.params)
    one = jax.tree.map(lambda x: x[0], (ours.opt_state.replicas, ours.opt_state.inner))
    jax.tree.map(close, one, (want.params, want.opt_state))
    assert metrics.pop("exchanged_bytes") == 0
    jax.tree.map(close, metrics, numbers)


def nearest(x, is_bank):
    """Returns E3M0 by hand: the nearest of 15 values, of each matrix."""
    found = np.zeros_like(x)
    for index in np.ndindex(x.shape[: 1 + is_bank]):
        part, top = x[index], np.abs(x[index]).max()
        levels = top * np.array([0.0, *(2.0 ** -np.arange(7))])
        levels = np.concatenate([levels, -levels]).astype(np.float32)
        found[index] = levels[np.abs(part[..., None] - levels).argmin(-1)]
    return found


ROUND = {
    "float32": lambda x, is_bank: x,
    "bfloat16": lambda x, is_bank: np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float32),
    "float4": nearest,
}


def by_hand(made, start, steps):
    """Returns outer parameters and those of the replicas, leaf by leaf, after so many steps."""
    how, specs = made.run.replicas, jax.tree.leaves(made.specs)
    outer = [np.asarray(x) for x in jax.tree.leaves(start.params)]
    own = [np.stack([x] * how.count) for x in outer]
    momentum, flight = [np.zeros_like(x) for x in outer], {}
    for step in range(1, steps + 1):
        weights = batch(step - 1)["weights"].reshape(how.count, -1, LENGTH)
        shifts = (weights.sum((1, 2)) / weights.shape[1]).astype(np.float32)
        own = [moving(x, shifts.reshape(-1, *[1] * (x.ndim - 1))) for x in own]
        for number, leaf in itertools.product(range(how.num_fragments), range(len(specs))):
            spec, last = specs[leaf], how.num_fragments - 1
            some = slice(number, None, how.num_fragments) if spec.bank else slice(None)
            if not spec.bank and number != last:
                continue
            each = (slice(None), some) if spec.bank else slice(None)
            since = step - math.floor((number + 1) * how.every_steps / how.num_fragments)
            if since >= 0 and since % how.every_steps == 0:
                gone = (outer[leaf][None] - own[leaf])[each]
                flight[number, leaf] = ROUND[how.exchange](gone, bool(spec.bank))
            since -= how.delay
            if since >= 0 and since % how.every_steps == 0:
                far = flight.pop((number, leaf)).mean(0)
                here = some if spec.bank else ...
                momentum[leaf][here] = how.outer_momentum * momentum[leaf][here] + far
                ahead = far + how.outer_momentum * momentum[leaf][here]
                outer[leaf] = outer[leaf].copy()
                outer[leaf][here] -= how.outer_learning_rate * ahead
                own[leaf][each] = how.mix * own[leaf][each] + (1 - how.mix) * outer[leaf][here]
    return outer, own


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"delay": 0, "mix": 0.0, "exchange": "bfloat16"},
        {"exchange": "float4", "num_fragments": 3, "count": 4, "every_steps": 4, "delay": 3},
    ],
)
def test_fragments_leave_arrive_and_are_mixed_as_by_hand(simple, changed):
    own = simple(**changed)
    start = jax.device_get(own.init())
    ours, _ = after(own, 13)
    outer, own = by_hand(own, start, 13)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    for got, want in zip(jax.tree.leaves(ours.params), outer, strict=True):
        close(got, want)
    for got, want in zip(jax.tree.leaves(ours.opt_state.replicas), own, strict=True):
        close(got, want)


def test_replicas_differ_and_the_outer_parameters_wait_until_a_fragment_arrives(simple):
    own = simple()
    start, (before, _) = jax.device_get(own.init()), after(own, 3)
    assert is_equal(before.params, start.params)
    first, second = (jax.tree.map(lambda x, m=m: x[m], before.opt_state.replicas) for m in (0, 1))
    assert all(map(np.any, jax.tree.leaves(jax.tree.map(lambda a, b: a != b, first, second))))
    arrived, _ = after(own, 4)  # the first fragment, which left after step 2
    part, other = own.exchanges.fragments
    moved = lambda which: [
        bool((a != b).any())
        for a, b in zip(which.take(arrived.params), which.take(start.params), strict=True)
    ]
    assert all(moved(part)) and not any(moved(other))


def test_replicas_of_the_same_rows_are_a_single_one(simple):
    same = lambda step: {k: np.tile(x[:4], (2, 1)) for k, x in batch(step).items()}
    half = lambda step: {k: x[:4] for k, x in batch(step).items()}
    two, _ = after(simple(), 8, rows=same)
    one, _ = after(simple(count=1), 8, rows=half)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(close, two.params, one.params)
    jax.tree.map(close, two.opt_state.momentum, one.opt_state.momentum)


@pytest.mark.parametrize("how", ["float4", slow("float32"), slow("bfloat16")])
def test_replicas_on_devices_of_their_own_are_those_of_one_device(simple, how):
    alone, numbers = after(simple(exchange=how), 8)
    mesh = {"replica": 2, "fsdp": 2}.items()
    spread, metrics = after(simple(4, mesh, exchange=how), 8)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(close, (spread.params, metrics), (alone.params, numbers))


@pytest.mark.slow
def test_real_steps_of_replicas_are_those_of_one_device():
    how = {**TWO, "every_steps": 3, "delay": 1}
    alone, numbers = after(trainer(**how), 5)
    spread, metrics = after(trainer(8, {"replica": 2, "fsdp": 2, "data": 2}, **how), 5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, (spread.params, metrics), (alone.params, numbers))


@pytest.mark.parametrize("name", ["recursive:tiny", "mor:tiny", "npas:tiny", "relaxed:tiny"])
@pytest.mark.parametrize("count", [1, 3])
def test_fragments_hold_every_parameter_that_trains_once(name, count):
    run = config.load(name, {"optimizer.trainable": "core"} if count == 1 else {})
    specs = model.specs(run.model.sized(VOCAB))
    trains = run.optimizer.trains(specs)
    found = jax.tree.map(lambda spec: np.zeros(spec.shape), specs)
    parts = fragments.fragments(specs, trains, count)
    for part in parts:
        more = [x + 1 for x in map(jnp.asarray, part.take(found))]
        found = part.put(jax.tree.map(jnp.asarray, found), more)
        assert [x.shape for x in more] == part.shapes
    jax.tree.map(lambda x, trained: np.testing.assert_array_equal(x, int(trained)), found, trains)
    kept = [s for s, yes in zip(*map(jax.tree.leaves, (specs, trains)), strict=True) if yes]
    assert sum(part.size[0] for part in parts) == params.count(kept)


@pytest.mark.parametrize(("every", "count", "delay"), [(1, 1, 0), (7, 3, 2), (100, 8, 99)])
def test_every_fragment_leaves_and_arrives_once_in_so_many_steps(every, count, delay):
    how = Replicas(2, every, count, delay)
    for start in (every, 3 * every + 1):
        window = range(start + delay, start + delay + every)
        for moves in (how.leaving, how.arriving):
            found = [f for step in window if (f := moves(step)) is not None]
            assert sorted(found) == list(range(count))


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 1, 3), (2, 5), (2,)])
def test_float4_takes_the_nearest_of_its_values(shape):
    rng = np.random.default_rng(len(shape))
    x = (rng.normal(size=shape) * np.exp2(rng.integers(-9, 1, shape))).astype(np.float32)
    for is_bank in {len(shape) > 2, False}:
        sent = exchange.encoded(jnp.asarray(x), "float4", is_bank)
        assert sent.values.dtype == jnp.uint8 and int(sent.values.max()) < 16
        np.testing.assert_allclose(exchange.decoded(sent), nearest(x, is_bank), rtol=1e-6)
    assert not np.any(exchange.decoded(exchange.encoded(jnp.zeros(shape), "float4", False)))


def over_replicas(made, lowered):
    """Returns the bytes that a device sends to other replicas in a compiled program."""
    found = collectives.collectives(hlo.parse(lowered.compile().as_text()))
    shape = dict(made.mesh.shape)
    return sum(c.sent * c.executions for c in found if "replica" in c.axes(shape))


@pytest.mark.parametrize("how", ["float32", "bfloat16", "float4"])
def test_a_step_exchanges_nothing_and_a_fragment_its_own_bytes(how):
    own = trainer(4, {"replica": 2, "fsdp": 2}, **{**TWO, "delay": 0, "exchange": how})
    if how == "float32":
        assert over_replicas(own, own.lower()) == 0
    for number in range(len(own.exchanges.fragments)):
        with jax.set_mesh(own.mesh):
            lowered = own.exchange(number).lower(own.abstract())
        assert over_replicas(own, lowered) == own.exchanges.wire_bytes(number)


@pytest.mark.slow
def test_a_delayed_fragment_is_gathered_in_the_step_after_which_it_is_applied():
    own = trainer(2, {"replica": 2}, **TWO)
    bytes_at = [over_replicas(own, own.lower(step)) for step in (1, 2, 3)]
    assert bytes_at == [0, 0, own.exchanges.wire_bytes(0)]


def test_the_bytes_that_are_counted_are_those_that_were_sent(simple):
    own = simple(exchange="float4")
    _, metrics = after(own, 8)  # after steps 2 + 2, 5 + 2: a fragment each
    once = sum(own.run.replicas.sent(*part.size) for part in own.exchanges.fragments)
    assert metrics["exchanged_bytes"] == once
    assert budget.exchanged_bytes(own.run, own.model) == once / own.run.replicas.every_steps


def test_what_is_exchanged_does_not_grow_with_recursions():
    runs = [
        config.load(
            "recursive:tiny",
            {**TYPED, "model.num_layers": str(layers), "depth.num_recursions": str(count)},
        )
        for layers, count in ((8, 2), (14, 4))
    ]
    shallow, deep = (budget.compare({"": run}, "none")[0] for run in runs)
    assert deep["training_flops"] > 1.5 * shallow["training_flops"]
    for name in ("exchanged_bytes_per_step", "gradient_bytes_per_step"):
        assert deep[name] == shallow[name] > 0


def test_a_run_resumes_to_the_bit_while_a_fragment_is_in_flight(simple, tmp_path):
    own = simple(exchange="float4")
    want, _ = after(own, 8)
    middle = own.init()
    for step in range(6):  # the last fragment left after 5 and arrives after 7
        middle, _ = own.step_function(step)(middle, own.put(batch(step)))
    saved = Checkpoints(tmp_path / "checkpoints", 1)
    saved.save(6, middle, {})
    saved.finish()
    ours, _ = after(own, 8, saved.restore(6, own.abstract()), 6)
    saved.close()
    assert is_equal(ours, want)


def test_what_a_device_holds_is_counted(simple):
    own = simple(2, {"replica": 2}.items(), exchange="float4")
    held, count = program.local_bytes(own.abstract().opt_state), params.count(own.specs)
    scales = 4 * sum(part.size[1] for part in own.exchanges.fragments)
    # The replica, two moments and the outer momentum in float32; a byte for each code in flight.
    assert held - 4 * 4 * count - count - scales in range(4, 17)  # counts of steps


def test_a_first_state_with_other_parameters_begins_there_in_every_replica(simple):
    own = simple()
    state = own.init()
    other = jax.tree.map(lambda x: x + 1, state.params)
    state = own.with_params(state, other)
    assert is_equal(jax.tree.map(lambda x: x[1], state.opt_state.replicas), other)


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"num_fragments": 6, "every_steps": 5}, ("num_fragments: got 6", "is 5")),
        ({"delay": 5, "every_steps": 5}, ("delay: got 5", "is 5")),
        ({"mix": 1.5}, ("mix: got 1.5",)),
        ({"outer_momentum": 1.0}, ("outer_momentum: got 1.0",)),
        ({"count": -1}, ("count: got -1",)),
        ({"num_fragments": 9}, ("9 fragments", "take 2")),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, parts):
    with refused(ConfigError, "config.replicas.", *parts):
        trainer(**{"count": 2, **fields})


def test_a_batch_or_a_mesh_that_replicas_do_not_divide_is_refused():
    shape = {**dict.fromkeys(sharding.AXES, 1), "replica": 2, "data": 2}
    mesh = jax.sharding.AbstractMesh(tuple(shape.values()), sharding.AXES)
    sharding.check_batch(8, LENGTH, mesh, 4)
    with refused(ConfigError, "config.train.batch_size: 12", "4 replicas of 2"):
        sharding.check_batch(12, LENGTH, mesh, 4)
    with refused(ConfigError, "config.mesh.replica: 2", "the 3 of"):
        sharding.check_batch(12, LENGTH, mesh, 3)
    with refused(ConfigError, "config.mesh.replica: 2", "the 0 of"):
        sharding.check_batch(12, LENGTH, mesh)


def test_parameters_that_change_in_number_are_refused():
    ties = {"ties": ((0.5, "none"),)}
    with refused(ConfigError, "config.replicas.count: got 2", "train.ties has 1"):
        tiny_run(FOLDER, "fixed", replicas=TWO, train=ties)


@pytest.mark.parametrize("field", ["count", "exchange", "delay"])
def test_a_run_resumes_with_its_own_replicas_alone(tmp_path, field):
    run = tiny_run(pathlib.Path("text"), "fixed", replicas=TWO)
    (tmp_path / config.RECORD).write_text(json.dumps(config.to_dict(run)))
    assert directory.recorded(tmp_path) == run
    other = dataclasses.replace(run.replicas, **{field: {"exchange": "float4"}.get(field, 4)})
    was, now = (repr(getattr(how, field)) for how in (run.replicas, other))
    with refused(CheckpointError, f"config.replicas.{field} was {was} and is {now}"):
        settings_history.changed(tmp_path, dataclasses.replace(run, replicas=other))
