"""Whatever a schedule's tables say, its stack is a plain loop over steps, however it is run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import injection, kv
from recursia.architecture import Model
from recursia.depth.fixed import Fixed
from recursia.layers.attention import Context
from recursia.sharing.remat import KEEP, Remat
from recursia.sharing.stack import Stack
from recursia.sharing.tied import Tied
from tests.helpers import exhaustive
from tests.helpers.blocks import published
from tests.helpers.points import PLANS, keys
from tests.helpers.tiny import assert_close, draw, keys_plan, normal

BLOCK = published("llama", embed_dim=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8)
LENGTH = 7
CONTEXT = Context(
    jnp.array([[*range(LENGTH)], [0, 1, 2, 0, 1, 2, 3]]),
    jnp.array([[1] * LENGTH, [1] * 3 + [2] * 4]),
)


def table(rng, recursions, blocks):
    """Returns a random table with entries numbered as they come."""
    drawn = rng.integers(0, 3, recursions * blocks).tolist()
    names = {entry: i for i, entry in enumerate(dict.fromkeys(drawn))}
    return tuple(tuple(names[entry] for entry in row) for row in _rows(drawn, blocks))


def _rows(flat, blocks):
    return tuple(tuple(flat[i : i + blocks]) for i in range(0, len(flat), blocks))


def drawn(seed, order):
    """Returns a model with random tables of entries, keys and windows, and what is kept of it."""
    rng = np.random.default_rng(seed)
    recursions, blocks = (int(n) for n in rng.integers((2, 1), (6, 4)))
    varies = tuple((slot, table(rng, recursions, blocks)) for slot in BLOCK.slots)
    # Some repeat every few recursions, so that there is something to scan over.
    plan = keys(rng, recursions, blocks, order)
    plan = ["own", "groups/2", "groups/3", "upper_half", plan, plan][rng.integers(6)]
    seen = rng.choice([0, 2, 3], recursions * blocks).tolist()
    windows = [0, 3, _rows(seen, blocks)][rng.integers(3)]
    made = Model(
        recursions * blocks,
        BLOCK,
        Fixed(recursions),
        sharing=order,
        varies=varies,
        kv=kv.Plan(plan, windows),
        vocab_size=1,
    )
    return made, Remat(["none", "block", "recursion"][rng.integers(3)])


def stacked(config, core, remat):
    none = injection.Injection(), {}
    return Stack(config.schedule, BLOCK, Tied(), core, *none, None, "float32", remat, read=None)


def by_walk(core, x, config, remat):
    return stacked(config, core, remat).walk(x, CONTEXT)[0], None


def by_recursions(core, x, config, remat):
    def step(x, recursion, entry):
        y, made = recursion.run(recursion.enter(x, CONTEXT), CONTEXT)
        return y, (y, entry), made

    numbers = jnp.arange(config.schedule.num_recursions)
    x, (states, seen), _, _ = stacked(config, core, remat).loop(step, x, numbers)
    return x, jnp.where((seen == numbers)[:, None, None, None], states, jnp.nan)


def by_while(core, x, config, remat, count):
    """Returns the state after `count` recursions of a loop that stops there."""

    def step(carry, recursion, entry):
        x, number = carry
        y, made = recursion.run(recursion.enter(x, CONTEXT), CONTEXT)
        return (jnp.where(number < count, y, x), number + 1), None, made

    start = x, jnp.int32(0)
    goes_on = lambda carry: carry[1] < count
    return stacked(config, core, remat).loop_while(step, start, None, goes_on)[0]


def weights_of(core, plan, step):
    """Returns a step's weights; those of keys have entries for steps that make some."""
    entries = {slot: plan.entry(slot) for slot in core}
    held = sorted({entries["attention"][owner] for owner in plan.owners})
    keys_at = held.index(entries["attention"][plan.owners[step]])

    def pick(slot, name, leaf):
        is_of_keys = slot == "attention" and name in ("key", "value")
        return leaf[keys_at if is_of_keys else entries[slot][step]]

    return {s: {name: pick(s, name, leaf) for name, leaf in core[s].items()} for s in core}


def by_steps(core, x, config, _):
    plan, made, states = config.schedule, {}, []
    for step in plan.steps.tolist():
        owner = plan.owners[step]
        source = None if owner == step else (made[owner], CONTEXT)
        context = CONTEXT.replace(window=int(plan.seen[step]))
        x, made[step], _ = BLOCK.apply(weights_of(core, plan, step), x, context, source)
        states += [x] if step % plan.num_blocks == plan.num_blocks - 1 else []
    return x, jnp.stack(states)


def result(run, config, remat):
    """Returns the last states, those after each recursion, and gradients of a sum of the last."""

    def total(core, x):
        y, states = run(core, x, config, remat)
        return jnp.sin(3 * y).sum(), (y, states)

    core, x = draw(config)["core"], normal(2, LENGTH, BLOCK.embed_dim)
    run_all = jax.value_and_grad(total, (0, 1), has_aux=True)
    return (run_all if run is by_steps else jax.jit(run_all))(core, x)


@pytest.mark.few(1)
@pytest.mark.parametrize("order", ["cycle", "sequence"])
@pytest.mark.parametrize("seed", [0, *map(exhaustive, range(1, 20))])
def test_a_stack_is_the_loop_over_its_steps(seed, order):
    config, remat = drawn(10 * seed + (order == "cycle"), order)
    (_, (x, states)), grads = result(by_steps, config, remat)
    (_, (ours, _)), our_grads = result(by_walk, config, remat)
    assert_close((ours, our_grads), (x, grads), n=1024)
    if order == "cycle":
        (_, ours), our_grads = result(by_recursions, config, remat)
        assert_close((ours, our_grads), ((x, states), grads), n=1024)


LOOPS = [
    Model(6, BLOCK, Fixed(3), sharing="cycle", kv=keys_plan(plan), vocab_size=1) for plan in PLANS
]
LOOPS = [config for config in LOOPS if not config.schedule.is_cyclic]


@pytest.mark.few(2)
@pytest.mark.parametrize("config", LOOPS, ids=[f"{c.kv.kv_sharing} {c.kv.reads}" for c in LOOPS])
def test_a_loop_that_stops_is_the_loop_up_to_there(config):
    core, x = draw(config)["core"], normal(2, LENGTH, BLOCK.embed_dim)
    states = by_recursions(core, x, config, KEEP)[1]
    run = jax.jit(lambda count: by_while(core, x, config, KEEP, count))
    for count in (1, 2, 3):
        assert_close(run(count), states[count - 1])
