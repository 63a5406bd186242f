"""A model of drawn depth, and the loop that it is, in float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from recursia import injection, model
from recursia.architecture import Model
from recursia.depth import recurrent
from recursia.sharing.remat import KEEP
from tests.helpers import by_hand
from tests.helpers.tiny import BATCH, BLOCK, LENGTH, VOCAB, draw

WIDTH = BLOCK.embed_dim


def tiny(recursions=3, blocks=2, *, dtype="float32", input="adapter", **options):
    """Returns a model with a prelude and a coda of one block; options are the policy's."""
    return Model(
        recursions * blocks + 2,
        BLOCK,
        recurrent.Recurrent(recursions, **{"backprop_depth": 2} | options),
        sharing="cycle",
        prelude=1,
        coda=1,
        inject=injection.Injection(input=input),
        loop_norm="last",
        dtype=dtype,
        vocab_size=VOCAB,
    )


FIXED = tiny(sampler="fixed")


def weights(config, seed=0):
    """Returns parameters under which states draw near a fixed point."""
    drawn = draw(config, seed)
    calm = lambda p, s: 0.5 * p if s.is_decayed else p
    drawn = jax.tree.map(calm, drawn, model.specs(config))
    if config.inject.input == "adapter":
        narrow = drawn["inject"]["adapter"].at[:WIDTH].mul(0.3)
        drawn["inject"] = {**drawn["inject"], "adapter": 1.5 * narrow}
    return drawn


def noise(seed=0, length=LENGTH):
    """Returns a first state."""
    return jax.random.normal(jax.random.key(seed), (BATCH, length, WIDTH))


@functools.partial(jax.jit, static_argnames=("config", "mode", "remat"))
def run(weights, tokens, config, mode="eval", **options):
    """Returns logits and what the policy reports."""
    out = model.apply(weights, tokens, config, mode=mode, **options)
    return model.logits(weights, out.hidden, config), out.aux


@functools.partial(jax.jit, static_argnames=("config", "mode", "remat"))
def gradient(weights, state, tokens, config, mode="train", key=None, remat=KEEP):
    """Returns the gradient of a number that all logits move, by parameters and first state."""

    def total(weights, state):
        logits, _ = run(weights, tokens, config, mode, state=state, key=key, remat=remat)
        return jnp.sin(logits).mean()

    return jax.grad(total, (0, 1))(weights, state)


@functools.lru_cache
def key_of(recursions, depth):
    """Returns a key with which training walks that many recursions."""
    total = jax.jit(lambda seed: sum(recurrent.draw(depth, jax.random.key(seed))))
    return next(jax.random.key(s) for s in range(10_000) if total(s) == recursions)


def block_by_hand(p, x, part, k):
    """Returns one block's output for a row."""
    where = np.stack([np.arange(len(x)), np.ones(len(x))])
    return by_hand.block(by_hand.pick(p[part], k), x, where, BLOCK)[0]


def walk_by_hand(p, tokens, state, config, recursions):
    """Returns logits [B T V] and depths [B T] of a loop over rows and recursions, in float64."""
    depth, rows, depths = config.depth, [], []
    end = np.asarray(p["final_norm"], np.float64)
    for row, s in zip(np.asarray(tokens), np.asarray(state, np.float64), strict=True):
        block = functools.partial(block_by_hand, p)
        table = np.asarray(p["embed"]["table"], np.float64)
        e = block(table[row], "prelude", 0)
        rests, taken = np.zeros(len(row), bool), np.zeros(len(row), int)

        def predicted(s, block=block, table=table):
            x = block(by_hand.norm(s, end, BLOCK.norm_eps), "coda", 0)
            logits = by_hand.norm(x, end, BLOCK.norm_eps) @ table.T
            return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

        for _ in range(recursions):
            y = s + e
            if config.inject.input == "adapter":
                y = np.concatenate([s, e], -1) @ np.asarray(p["inject"]["adapter"], np.float64)
            for k in range(config.schedule.num_blocks):
                y = block(y, "core", k)
            y[rests] = s[rests]
            taken += ~rests
            size = lambda x: np.sqrt((x**2).sum(-1))
            old, new = predicted(s), predicted(y)
            entropy = lambda said: -(np.exp(said) * said).sum(-1)
            far = {
                "none": np.ones(len(row)),
                "kl": (np.exp(new) * (new - old)).sum(-1),
                "entropy": np.abs(entropy(new) - entropy(old)),
                "latent_diff": size(y - s) / size(y),
                "cosine": 1 - (s * y).sum(-1) / size(s) / size(y),
            }[depth.exit]
            rests, s = rests | (far < (depth.threshold if depth.exit != "none" else 0)), y
        x = block(by_hand.norm(s, end, BLOCK.norm_eps), "coda", 0)
        rows.append(by_hand.norm(x, end, BLOCK.norm_eps) @ table.T)
        depths.append(taken)
    return np.stack(rows), np.stack(depths)
