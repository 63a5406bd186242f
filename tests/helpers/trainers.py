"""Trainers of tiny runs that read no data, and their losses on a batch."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from recursia import config, model, sharding
from recursia.train.objective import loss_fn
from recursia.train.step import Trainer
from tests.helpers.batches import whole_rows
from tests.helpers.runs import tiny_run
from tests.helpers.tiny import draw

VOCAB, ROWS, LENGTH = 32, 8, 16
leaves = jax.tree.leaves
FOLDER = pathlib.Path("no-data-is-read")
COUNT = 3
GATE = {"kind": "exit_gate", "num_recursions": COUNT}
FIXED = {"kind": "fixed", "num_recursions": COUNT}


def batch(seed=0):
    """Returns rows whose token weights are as uneven between rows as they can be."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, VOCAB, (ROWS, LENGTH + 1), dtype=np.int32)
    weights = rng.uniform(size=(ROWS, LENGTH)).astype(np.float32)
    weights[1], weights[2, 5:] = 0.0, 0.0
    return whole_rows(tokens, weights)


def trainer(depth, folder=FOLDER, teacher=None, devices=1, **sections):
    """Returns the trainer of a tiny run whose state after each recursion is normalised."""
    shape = {"num_layers": 2 * depth["num_recursions"], "depth": depth, "loop_norm": "each"}
    run = tiny_run(folder, model=shape, **sections)
    mesh = sharding.make_mesh(run.mesh, jax.devices()[:devices])
    return Trainer(run, run.model.sized(VOCAB), mesh, teacher)


def of(chosen, devices=1, optimizer=None, **axes):
    """Returns the trainer of a model, of two microbatches, on a mesh of these axes."""
    run = config.load("vanilla:tiny", {"train.batch_size": str(ROWS), "train.seq_len": str(LENGTH)})
    training = dataclasses.replace(run.train, num_microbatches=2)
    split = dataclasses.replace(run.mesh, **axes)
    rule = optimizer or run.optimizer
    run = dataclasses.replace(run, train=training, model=chosen, mesh=split, optimizer=rule)
    mesh = sharding.make_mesh(run.mesh, jax.devices()[:devices])
    return Trainer(run, chosen.sized(VOCAB), mesh)


def drawn(made, seed=1):
    """Returns parameters under which tokens differ."""
    return draw(made.model, seed)


def graded(made, weights, teacher=None):
    """Returns the trainer's loss of a batch, its metrics and its gradient."""
    rows = {name: jnp.asarray(x) for name, x in batch().items()}
    loss = functools.partial(loss_fn, made.run, made.model, teacher=teacher)
    grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, metrics), grads = grad(weights, rows, rows["weights"].sum(), jnp.int32(0), 0)
    return value, metrics, grads


def states_of(out):
    """Returns the states that the loss reads [R B T D]: where it is the last alone, that one."""
    return out.hidden[None] if out.aux.states is None else out.aux.states


def nats_of(made, weights):
    """Returns each state's cross-entropy [R B T] on whole logits, and what the policy reports."""
    rows = batch()
    where = {name: rows[name] for name in ("positions", "segment_ids")}
    out = model.apply(weights, rows["tokens"], made.model, mode="train", **where)
    logits = model.logits(weights, states_of(out), made.model)
    score = optax.softmax_cross_entropy_with_integer_labels
    return score(logits, np.broadcast_to(rows["targets"], logits.shape[:-1])), out.aux


def mean(each):
    weights = batch()["weights"]
    return (weights * each).sum() / weights.sum()


def short_run(folder, depth=FIXED, **sections):
    """Returns a run of one step of a tiny model, which is not scored until it ends."""
    shape = {"num_layers": 2 * depth["num_recursions"], "depth": depth, "loop_norm": "each"}
    short = {
        "model": shape,
        "train": {"num_steps": 1},
        "eval": {"every_steps": 0, "num_batches": 1},
    }
    short["log"] = {"sinks": []}
    changed = {name: short.get(name, {}) | section for name, section in sections.items()}
    return tiny_run(folder, **{**short, **changed})
