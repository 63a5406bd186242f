"""The block with norms around each branch, walked four times with a norm after each time."""

import dataclasses

import jax
import numpy as np
import pytest

from recursia import accounting, config, kv
from recursia.architecture import Model
from recursia.depth import exit_gate, fixed
from recursia.sharing.remat import Remat
from tests.helpers import by_hand
from tests.helpers.blocks import arranged, published
from tests.helpers.flops import assert_exact
from tests.helpers.tiny import VOCAB, assert_close, draw, error, forward, gradient, text

BLOCK = published("ouro", embed_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=24)


def build(depth=None, recursions=3, blocks=2, block=BLOCK, kv_sharing="own", **options):
    depth = depth or exit_gate.ExitGate(recursions, exit_threshold=0.6)
    options = {"loop_norm": "each", "sharing": "cycle", **options}
    layers = recursions * blocks
    return Model(layers, block, depth, kv=kv.Plan(kv_sharing), **options).sized(VOCAB)


def block_by_hand(w, x, where, block):
    """Returns one block in float64: what Llama's branches add, normalised."""
    only = lambda names, slot: {"attention": w["norms"][names], "mlp": w["norms"][slot]}
    zero = lambda tree: {name: np.zeros_like(leaf) for name, leaf in tree.items()}
    norm = lambda y, name: by_hand.norm(y, w["norms"][name], block.norm_eps)
    norms = only("attention", "mlp")
    mixed, _ = by_hand.block(
        {"norms": norms, "attention": w["attention"], "mlp": zero(w["mlp"])}, x, where, block
    )
    x = x + norm(mixed - x, "after_attention")
    done, _ = by_hand.block(
        {"norms": norms, "attention": zero(w["attention"]), "mlp": w["mlp"]}, x, where, block
    )
    return x + norm(done - x, "after_mlp")


def run_by_hand(params, row, config, threshold):
    """Returns a row's chosen states, its p [R T] and the recursion in which each token stopped."""
    gate = by_hand.pick(params["depth"]["gate"], ...)
    final = np.asarray(params["final_norm"], np.float64)
    x = np.asarray(params["embed"]["table"], np.float64)[row]
    where = np.stack([np.arange(len(row)), np.ones(len(row))])
    count, left, p, states = config.schedule.num_recursions, np.ones(len(row)), [], []
    for r in range(count):
        for k in range(config.schedule.num_blocks):
            x = block_by_hand(
                by_hand.step_weights(params, config.schedule, r, k), x, where, config.block
            )
        x = by_hand.norm(x, final, config.block.norm_eps)
        stop = by_hand.sigmoid(x @ gate["weight"] + gate["bias"])
        p.append(left if r == count - 1 else left * stop)
        left = left * (1 - stop)
        states.append(x)
    stopped = np.cumsum(p, 0) >= threshold
    stopped[-1] = True
    step = stopped.argmax(0)
    return np.stack(states)[step, np.arange(len(row))], np.stack(p), step + 1


@pytest.mark.parametrize("mode", ["train", "eval", "causal"])
def test_the_model_is_its_formula(mode):
    made = build()
    params, tokens = draw(made), text()
    logits, aux = forward(params, tokens, made, mode)
    threshold = 2.0 if mode == "train" else 0.6
    hands = [run_by_hand(params, row, made, threshold) for row in np.asarray(tokens)]
    hidden, p, steps = (np.stack(part) for part in zip(*hands, strict=True))
    assert_close(logits, hidden @ np.asarray(params["embed"]["table"], np.float64).T, n=512)
    assert np.array_equal(aux.depth_used, steps)
    assert len(np.unique(steps)) == (1 if mode == "train" else 3)
    if mode == "causal":
        return
    p = p.swapaxes(0, 1)
    assert_close(aux.metrics["exit_probability"], p.mean((1, 2)), n=512)
    assert_close(aux.metrics["exit_entropy"], -(p * np.log(p)).sum(0).mean(), n=512)
    if mode == "train":
        assert_close(aux.exit_weights, p, n=512)


def test_the_final_norm_feeds_the_next_recursion():
    made = build(fixed.Fixed(2), recursions=2)
    params = draw(made)
    plain = dataclasses.replace(made, loop_norm="none")
    assert error(forward(params, text(), made)[0], forward(params, text(), plain)[0]) > 0.01


def test_outer_norms_bound_what_a_block_adds():
    made = build(fixed.Fixed(1), recursions=1, blocks=1)
    params = draw(made)
    loud = jax.tree.map(lambda x: 100 * x, params["core"]["attention"])
    loud = {**params, "core": {**params["core"], "attention": loud}}
    _, aux = forward(loud, text(), dataclasses.replace(made, loop_norm="none"))
    assert np.abs(aux.states).max() < 100  # two norms of width 16 add at most 2 sqrt(16) scale


@pytest.mark.parametrize("remat", ["block", "recursion"])
def test_flops_with_a_norm_between_recursions_are_exact(remat):
    block = published("ouro", embed_dim=8, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=12)
    assert_exact(build(fixed.Fixed(2), 2, block=block), remat=Remat(remat))
    assert block.forward_flops(9, False) == arranged(block, "pre_norm").forward_flops(9, False)


@pytest.mark.parametrize(("preset", "count"), [("1.4b", 1_434_652_673), ("2.6b", 2_667_974_657)])
def test_published_parameters(preset, count):
    run = config.load(f"ouro:{preset}", {})
    made = run.model.sized(run.model.vocab_size)
    assert accounting.unique_parameters(made) == count
    assert made.schedule.num_recursions == 4 and made.loop_norm == "each"
    assert made.schedule.num_blocks == (24 if preset == "1.4b" else 48)


@pytest.mark.slow
def test_it_computes_in_bfloat16_and_its_gate_in_float32():
    made = dataclasses.replace(build(), dtype="bfloat16")
    params = draw(made)
    wide = forward(params, text(), build(), "train")[1].exit_weights
    assert 0 < error(forward(params, text(), made, "train")[1].exit_weights, wide) < 0.1
    _, grads = gradient(params, text(), made)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
