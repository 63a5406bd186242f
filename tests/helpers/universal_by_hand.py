"""The Universal Transformer again, in float64 NumPy, one row at a time, from the papers' formulas.

Nothing of the library but its configs and parameter names.
"""

import math

import numpy as np

from recursia import injection
from recursia.blocks.pre_norm import PreNorm
from tests.helpers.blocks import arranged, flat, published
from tests.helpers.by_hand import attend, keys_of, layer_norm, pick, sigmoid, step_weights

BLOCK = published("universal", embed_dim=16, num_heads=4, head_dim=4, mlp_dim=24)
FORMS = {
    "released": (BLOCK, injection.Injection(position="halves", step="learned")),
    "paper": (
        arranged(BLOCK, "post_norm"),
        injection.Injection(position="interleaved", step="interleaved"),
    ),
}


def wave(i, d, layout):
    """Returns the coordinate of one place, or one step, entry by entry; for an even width."""
    row = np.zeros(d)
    for j in range(d // 2):
        if layout == "interleaved":
            row[2 * j] = math.sin(i / 10_000 ** (2 * j / d))
            row[2 * j + 1] = math.cos(i / 10_000 ** (2 * j / d))
        else:
            angle = i * math.exp(-j * math.log(10_000) / (d / 2 - 1))
            row[j], row[d // 2 + j] = math.sin(angle), math.cos(angle)
    return row


def entered(params, x, where, r, inject):
    """Returns the state that recursion r = 0, 1, ... starts from."""
    d = x.shape[-1]
    if inject.position != "none":
        x = x + np.stack([wave(place, d, inject.position) for place in where[0]])
    if inject.step == "learned":
        return x + np.asarray(params["inject"]["step"], np.float64)[r]
    if inject.step != "none":  # the paper counts from 1, the code from 0
        return x + wave(r + 1 if inject.step == "interleaved" else r, d, inject.step)
    return x


def block(weights, x, where, config, source=None, memory=None):
    """Returns one block's output and its (keys, values, where); `where` is [2 T]."""
    is_pre, config = isinstance(config, PreNorm), flat(config)
    w, m, eps = weights["attention"], weights["mlp"], config.norm_eps
    ln = lambda x, name: layer_norm(x, weights["norms"][name], eps)
    h = ln(x, "attention") if is_pre else x
    if source is None:
        seen = h if memory is None else ln(memory, "attention") if is_pre else memory
        heads = lambda name: np.einsum("td,dnh->tnh", seen, w[name])
        source = heads("key"), heads("value"), where
    key, value, there = source
    query = np.einsum("td,dnh->tnh", h, w["query"])
    mixed = attend(query, key, value, where, there)
    x = x + np.einsum("tnh,nhd->td", mixed, w["out"])
    x = x if is_pre else ln(x, "attention")
    h = ln(x, "mlp") if is_pre else x
    x = x + np.maximum(h @ m["up"] + m["up_bias"], 0) @ m["down"] + m["down_bias"]
    return x if is_pre else ln(x, "mlp"), source


def transform(params, x, where, r, config, made):
    """Returns the state after all blocks of recursion r; `made` holds the keys of steps before."""
    plan = config.schedule
    for k in range(plan.num_blocks):
        weights, source = step_weights(params, plan, r, k), keys_of(plan, r, k, made)
        x, made[r * plan.num_blocks + k] = block(weights, x, where, config.block, source)
    return x


def run_fixed(params, x, where, config):
    """Returns the last state of a row, and every one."""
    made, states = {}, []
    for r in range(config.schedule.num_recursions):
        x = entered(params, x, where, r, config.inject)
        x = transform(params, x, where, r, config, made)
        states.append(x)
    return x, {"states": np.stack(states)}


def run_act(params, x, where, config):
    """Returns a row's output by the published loop, and what its halting did."""
    depth, made = config.depth, {}
    unit = pick(params["depth"]["halt"], ...)
    theta, most = 1 - depth.epsilon, depth.num_recursions
    h, left, n = np.zeros(len(x)), np.zeros(len(x)), np.zeros(len(x), int)
    s, out, states, shares = x, np.zeros_like(x), [], []
    while np.any((h < theta) & (n < most)):
        r = n.max()
        old = s
        s = entered(params, s, where, r, config.inject)
        p = sigmoid(s @ unit["weight"] + unit["bias"])
        was_running = h < 1
        halts = was_running & (h + p > theta)
        stays = was_running & (h + p <= theta)
        h = h + p * stays
        left = left + halts * (1 - h)
        h = h + halts * left
        n = n + stays + halts
        u = p * stays + halts * left
        s = transform(params, s, where, r, config, made)
        if depth.halted_state == "copied":
            s = np.where(was_running[:, None], s, old)
        if depth.update == "basic":
            out = u[:, None] * s + (1 - u[:, None]) * out
        else:
            out = out + u[:, None] * s
        states.append(out)
        shares.append(u)
    report = {"n": n, "left": left, "h": h, "shares": np.stack(shares), "states": np.stack(states)}
    return out, report


def forward(params, tokens, config, positions=None, segment_ids=None):
    """Returns logits, and for each row what its recursions did."""
    rows, reports = [], []
    table = np.asarray(params["embed"]["table"], np.float64)
    run = run_act if hasattr(config.depth, "halted_state") else run_fixed
    for b, row in enumerate(np.asarray(tokens)):
        place = np.arange(len(row)) if positions is None else np.asarray(positions)[b]
        segment = np.ones(len(row)) if segment_ids is None else np.asarray(segment_ids)[b]
        x = config.embed.scale * table[row]
        x, report = run(params, x, np.stack([place, segment]), config)
        if isinstance(config.block, PreNorm):
            x = layer_norm(x, pick(params["final_norm"], ...), config.block.norm_eps)
        rows.append(x @ table.T)
        reports.append(report)
    return np.stack(rows), reports
