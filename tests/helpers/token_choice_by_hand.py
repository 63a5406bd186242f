"""Token choice in float64 NumPy, one row at a time."""

import numpy as np

from tests.helpers import by_hand


def scores_by_hand(params, x, depth):
    """Returns logits and scores [T R] of a row's states."""
    weights = {k: np.asarray(v, np.float64) for k, v in params["router"].items()}
    h = x / depth.temperature
    if "hidden" in weights:
        h = by_hand.gelu(h @ weights["hidden"])
    logits = h @ weights["out"]
    if depth.score == "sigmoid":
        return logits, depth.alpha * by_hand.sigmoid(logits)
    scores = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return logits, depth.alpha * scores


def row_by_hand(params, x, where, config, depths=None):
    """Walks a row's core; returns its states, logits, scores and depths."""
    policy, plan, made = config.depth, config.schedule, {}
    logits, scores = scores_by_hand(params["depth"], x, policy)
    if depths is None:
        bias = np.asarray(params["depth"].get("bias", np.zeros(policy.num_recursions)))
        depths = 1 + (scores + bias).argmax(-1)
    now, out = x.copy(), x.copy()
    for r in range(plan.num_recursions):
        kept = np.flatnonzero(depths > r)
        if not len(kept):
            break
        h = now[kept]
        for k in range(plan.num_blocks):
            source = by_hand.keys_of(plan, r, k, made)
            weights, step = by_hand.step_weights(params, plan, r, k), r * plan.num_blocks + k
            h, made[step] = by_hand.block(weights, h, where[:, kept], config.block, source)
        now[kept] = h
        done = np.flatnonzero(depths == r + 1)
        out[done] = by_hand.updated(x[done], now[done], scores[done, r], policy.gating)
    return out, logits, scores, depths


def by_loop(params, tokens, config, segment_ids=None, depths=None):
    """Returns logits [B T V], and router logits, scores and depths of all rows."""
    rows = []
    for b, row in enumerate(np.asarray(tokens)):
        segment = np.ones(len(row)) if segment_ids is None else np.asarray(segment_ids)[b]
        where = np.stack([np.arange(len(row)), segment])
        x = np.asarray(params["embed"]["table"], np.float64)[row]
        for i in range(config.ends["prelude"]):
            x, _ = by_hand.block(by_hand.pick(params["prelude"], i), x, where, config.block)
        x, *said = row_by_hand(params, x, where, config, None if depths is None else depths[b])
        for i in range(config.ends["coda"]):
            x, _ = by_hand.block(by_hand.pick(params["coda"], i), x, where, config.block)
        x = by_hand.norm(x, np.asarray(params["final_norm"], np.float64), config.block.norm_eps)
        rows.append((x @ np.asarray(params["embed"]["table"], np.float64).T, *said))
    return [np.stack(part) for part in zip(*rows, strict=True)]


def balance(scores, depths):
    """Returns R times the sum of mean score and share over depths."""
    count = scores.shape[-1]
    share = np.array([(depths == 1 + i).mean() for i in range(count)])
    return count * (scores.mean((0, 1)) * share).sum()
