"""The models again, in float64 NumPy: one row, one step, one token subset at a time.

Written from the papers' formulas and nothing of the library but its configs and parameter names.
"""

import math

import numpy as np

from tests.helpers.blocks import flat

erf = np.vectorize(math.erf)
sigmoid = lambda x: 1 / (1 + np.exp(-x))


def norm(x, scale, eps):
    """Returns the root-mean-square normalisation of the last axis."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def layer_norm(x, weights, eps):
    """Returns the layer normalisation of the last axis."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weights["scale"] + weights["bias"]


def gelu(x):
    """Returns the Gaussian error linear unit."""
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def probabilities(query, key, where, there, sees_itself=True):
    """Returns those of causal attention [T N S] within documents; places of tokens are [2 T]."""
    found, group = np.zeros((*query.shape[:2], len(key))), query.shape[1] // key.shape[1]
    for t, n in np.ndindex(query.shape[:2]):
        sees = (there[0] < where[0, t] + sees_itself) & (there[1] == where[1, t])
        if not sees.any():
            continue
        score = np.exp(key[sees, n // group] @ query[t, n] / math.sqrt(query.shape[-1]))
        found[t, n, sees] = score / score.sum()
    return found


def mix(probabilities, value):
    """Returns the values [T N H] that heads attend to; some share a head of values [S K H]."""
    group = probabilities.shape[1] // value.shape[1]
    return np.einsum("tns,snh->tnh", probabilities, value.repeat(group, 1))


def attend(query, key, value, where, there, sees_itself=True):
    """Returns causal attention [T N H]; see `probabilities`."""
    return mix(probabilities(query, key, where, there, sees_itself), value)


def rotate(x, positions, base):
    """Returns heads [T N H] turned by their positions, first half against second."""
    half = x.shape[-1] // 2
    turns = np.exp(1j * positions[:, None, None] / base ** (np.arange(half) / half))
    turned = (x[..., :half] + 1j * x[..., half:]) * turns
    return np.concatenate([turned.real, turned.imag], -1)


def block(weights, x, where, config, source=None, sees_itself=True, reuses=False):
    """Returns one Llama block's output and its (keys, values, where, attention probabilities).

    `where` is [2 T]; `reuses` says that the step takes the probabilities of its source, and makes
    values alone.
    """
    config, w = flat(config), weights["attention"]
    base = config.rope_base
    heads = lambda h, name: np.einsum("td,dnh->tnh", h, w[name])
    h = norm(x, weights["norms"]["attention"], config.norm_eps)
    if reuses and source is not None:
        mixed = mix(source[3], heads(h, "value"))
    else:
        query = rotate(heads(h, "query"), where[0], base)
        if source is None:
            source = rotate(heads(h, "key"), where[0], base), heads(h, "value"), where
        key, value, there = source[:3]
        seen = probabilities(query, key, where, there, sees_itself)
        mixed, source = mix(seen, value), (key, value, there, seen)
    x = x + np.einsum("tnh,nhd->td", mixed, w["out"])
    h = norm(x, weights["norms"]["mlp"], config.norm_eps)
    gate = h @ weights["mlp"]["gate"]
    return x + (gate * sigmoid(gate) * (h @ weights["mlp"]["up"])) @ weights["mlp"]["down"], source


def pick(tree, index):
    """Returns one entry of every leaf of nested dictionaries."""
    if isinstance(tree, dict):
        return {name: pick(leaf, index) for name, leaf in tree.items()}
    return np.asarray(tree, np.float64)[index]


def step_weights(params, plan, recursion, k):
    """Returns the weights of a step of the core; those of what it reads where it makes that."""
    entry = lambda slot: plan.by_recursion(slot)[recursion, k]
    core, step = dict(params["core"]), recursion * plan.num_blocks + k
    attention = dict(core["attention"])
    names = ("query", "key") if plan.replays else ("key", "value")
    keys = {name: attention.pop(name) for name in names if name in attention}
    found = {
        slot: pick(bank, entry(slot)) for slot, bank in {**core, "attention": attention}.items()
    }
    if plan.owners[step] == step:
        held = sorted({plan.entry("attention")[owner] for owner in plan.owners})
        found["attention"] |= pick(keys, held.index(entry("attention")))
    return found


def keys_of(plan, recursion, k, made):
    """Returns what step (recursion, k) reads of those before it by step; None makes its own."""
    step = recursion * plan.num_blocks + k
    return None if plan.owners[step] == step else made[plan.owners[step]]


def router_logits(params, plan, recursion, x, name="router"):
    """Returns one recursion's score of each token."""
    w = pick(params["depth"][name], plan.by_recursion("router")[recursion, 0])
    if "hidden" in w:
        x = gelu(x @ w["hidden"])
    return x @ w["out"]


def gate_of(logits, config):
    """Returns the factor of a token's update."""
    squash = {"sigmoid": sigmoid, "tanh": np.tanh}
    return config.alpha * squash[config.score](logits) if config.score in squash else logits


def best(gate, count):
    """Returns the places of the highest gates, in order; of equal ones the earlier."""
    return sorted(sorted(range(len(gate)), key=lambda t: (-gate[t], t))[:count])


def updated(x, y, gate, gating):
    """Returns the state of a token that a recursion turned from `x` into `y`."""
    gate = gate[:, None]
    forms = {"weighted": x + gate * y, "additive": x + y, "delta": x + gate * (y - x), "replace": y}
    return forms[gating]


def run_fixed(params, x, where, config, mode):
    """Walks all steps of a row, in the schedule's order.

    From a step that reads keys of a later one, up to the last whose keys are read in between, steps
    are walked again with the keys of the walk before: as often as training does, or in mode
    "causal" until every token's are right.
    """
    plan, shape = config.schedule, (len(x), config.block.mixer.num_kv_heads, -1)
    nothing = np.zeros((len(x), config.block.mixer.key_width)).reshape(shape)
    made = dict.fromkeys(map(int, plan.steps), (nothing, nothing, where))
    is_later = plan.owner_places > np.arange(len(plan.steps))
    count, start = len(x) if mode == "causal" else sum(plan.passes), 0
    while start < len(plan.steps):
        stop = start + 1
        while is_later[start] and max(plan.owner_places[start:stop]) >= stop:
            stop += 1
        for _ in range(count if is_later[start] else 1):
            h = x
            for at, step in enumerate(map(int, plan.steps[start:stop]), start):
                r, k = divmod(step, plan.num_blocks)
                weights, source = step_weights(params, plan, r, k), keys_of(plan, r, k, made)
                how = source, not is_later[at], plan.replays
                h, made[step] = block(weights, h, where, config.block, *how)
        x, start = h, stop
    return x, []


def run_expert_choice(params, x, where, config, mode):
    """Routes a row; also returns (logits, chosen among the active, kept tokens) by recursion.

    The logits are those that decide in causal mode.
    """
    depth, plan, made, report = config.depth, config.schedule, {}, []
    active, capacity_before = np.arange(len(x)), 1.0
    for r, capacity in enumerate(depth.capacity):
        logits = router_logits(params, plan, r, x[active] / depth.temperature)
        gate = gate_of(logits, depth)
        if depth.sampling == "aux_router":
            logits = router_logits(params, plan, r, x[active], "aux_router")
        if mode == "causal":
            is_open = capacity >= capacity_before
            chosen = [i for i, score in enumerate(logits) if is_open or score >= 0]
        else:
            chosen = best(gate, max(1, int(capacity * len(x))))
        # A recursion whose keys others read makes those of every active token, kept or not.
        later = plan.owners[(r + 1) * plan.num_blocks :]
        is_source = bool((later // plan.num_blocks == r).any())
        going = np.arange(len(active)) if is_source else np.array(chosen, int)
        kept, h = active[chosen], x[active[going]]
        for k in range(plan.num_blocks):
            weights, source = step_weights(params, plan, r, k), keys_of(plan, r, k, made)
            there = where[:, active[going]]
            how = source, True, plan.replays
            h, made[r * plan.num_blocks + k] = block(weights, h, there, config.block, *how)
        h = h[chosen] if is_source else h
        x = x.copy()
        x[kept] = updated(x[kept], h, gate[chosen], depth.gating)
        report.append((logits, np.isin(np.arange(len(active)), chosen), kept))
        active, capacity_before = kept, capacity
    return x, report


def forward(params, tokens, config, mode="eval", positions=None, segment_ids=None):
    """Returns logits, and for each row what its routing did."""
    rows, reports = [], []
    for b, row in enumerate(np.asarray(tokens)):
        place = np.arange(len(row)) if positions is None else np.asarray(positions)[b]
        segment = np.ones(len(row)) if segment_ids is None else np.asarray(segment_ids)[b]
        where = np.stack([place, segment])
        x = np.asarray(params["embed"]["table"], np.float64)[row]
        for i in range(config.ends["prelude"]):
            x, _ = block(pick(params["prelude"], i), x, where, config.block)
        if hasattr(config.depth, "capacity"):
            x, report = run_expert_choice(params, x, where, config, mode)
        else:
            x, report = run_fixed(params, x, where, config, mode)
        for i in range(config.ends["coda"]):
            x, _ = block(pick(params["coda"], i), x, where, config.block)
        x = norm(x, np.asarray(params["final_norm"], np.float64), config.block.norm_eps)
        head = params["embed"].get("head", params["embed"]["table"])
        rows.append(x @ np.asarray(head, np.float64).T)
        reports.append(report)
    return np.stack(rows), reports


def cross_entropy(reports, recursion):
    """Returns the mean over active tokens of a router's loss: log(1 + exp(z)) - z if chosen."""
    logits = np.concatenate([report[recursion][0] for report in reports])
    chosen = np.concatenate([report[recursion][1] for report in reports])
    return (np.logaddexp(0, logits) - logits * chosen).mean()
