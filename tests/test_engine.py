"""What a request gets from slots is what it gets alone, however they are refilled."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import kv
from recursia.generate import decode, slots
from recursia.generate.engine import Engine, Request
from recursia.generate.sampling import Sampling
from recursia.generate.scheduler import simulate
from tests.helpers import exhaustive, points, slow
from tests.helpers.tiny import draw, forward, text

WINDOW, SLOTS = 16, 2
MODELS = {  # name: options of a point, and settings under which tokens stop at different depths
    "token_choice": ({"sharing": "middle_cycle"}, {}),
    "exit_gate": ({}, {"exit_threshold": 0.55}),
    "exit_gate, first keys": ({"kv_sharing": "first_recursion"}, {"exit_threshold": 0.55}),
    "expert_choice": ({}, {}),
    "act": ({}, {"epsilon": 0.2, "halt_bias_init": -0.5, "halted_state": "copied"}),
    "stick_breaking": ({}, {"threshold": 0.3}),
    "recurrent": ({"recursions": 5}, {"exit": "latent_diff", "exit_threshold": 1.0}),
    "fixed": ({"weights": "lora", "inject_": "learned steps", "loop_norm": "each"}, {}),
}


def early(name):
    options, fields = MODELS[name]
    config = points.point(depth_=name.split(",")[0], **{"num_blocks": 1, **options})
    depth = dataclasses.replace(config.depth, **fields)
    config = dataclasses.replace(config, depth=depth)
    return config, draw(config)


def requests(lengths=(14, 3, 6)):
    """Returns requests with prompts of different lengths; the first leaves its context."""
    tokens = np.asarray(text(batch=len(lengths))).tolist()
    return [
        Request(tuple(row[: 3 + 2 * i]), count, Sampling(2.0), jax.random.key(i))
        for i, (row, count) in enumerate(zip(tokens, lengths, strict=True))
    ]


def served(config, params, given, discipline, end=-1):
    """Returns what every request gets, and the engine."""
    how = {"num_slots": SLOTS, "window": WINDOW, "end_of_text": end, "discipline": discipline}
    engine = Engine(params, config, **how)
    done = sorted(engine.serve(given), key=lambda each: each.index)
    return [each.tokens for each in done], engine


def alone(config, params, request, end=-1):
    return decode.generate(
        params,
        config,
        list(request.prompt),
        num_tokens=request.num_tokens,
        window=WINDOW,
        sampling=request.sampling,
        end_of_text=end,
        key=request.key,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["exit_gate", *(exhaustive(name) for name in MODELS if name != "exit_gate")]
)
def test_a_batch_never_changes_what_a_request_gets(name):
    config, params = early(name)
    given = requests()
    want = [alone(config, params, request) for request in given]
    for discipline in ("depth", "sequence", "static"):
        assert served(config, params, given, discipline)[0] == want
    end = want[0][5]
    assert end not in want[0][:5]
    ended = [tokens[: tokens.index(end)] if end in tokens else tokens for tokens in want]
    assert served(config, params, given, "depth", end)[0] == ended


def every_kind():
    """Returns models of early exits that have every kind of block, layer and weights in slots."""
    refused = lambda kind: slots.refusal(points.point(weights=kind))
    weights = [kind for kind in points.WEIGHTS if not refused(kind)]
    axes = points.BLOCKS, points.MIXERS, points.FEEDFORWARDS, weights
    most = max(map(len, axes))
    rows = zip(*(itertools.islice(itertools.cycle(axis), most) for axis in axes), strict=True)
    names = "block_", "mixer", "feedforward", "weights"
    each = [dict(zip(names, row, strict=True)) for row in rows]
    return {"-".join(options.values()): options for options in each}


EVERY_KIND = every_kind()
SERVED = [(exhaustive if i % 5 else slow)(each) for i, each in enumerate(EVERY_KIND.values())]


@pytest.mark.parametrize("options", SERVED, ids=EVERY_KIND)
def test_slots_serve_every_kind_of_block(options):
    config = points.point(depth_="token_choice", num_blocks=1, **options)
    params, given = draw(config), requests((6, 3))
    tokens, engine = served(config, params, given, "depth")
    assert tokens == [alone(config, params, request) for request in given]
    assert engine.ticks


@pytest.mark.slow
def test_requests_have_their_own_sampling():
    config, params = early("token_choice")
    pair = [dataclasses.replace(requests()[0], sampling=Sampling(t)) for t in (0.0, 2.0)]
    pair = [dataclasses.replace(request, num_tokens=6) for request in pair]
    want = [alone(config, params, request) for request in pair]
    assert want[0] != want[1]
    assert served(config, params, pair, "depth")[0] == want


def depths(config, params, request, tokens):
    """Returns the recursions of the tokens that are read one by one: all but the last."""
    ids = jnp.array([[*request.prompt, *tokens]])
    used = forward(params, ids, config, "causal")[1].depth_used[0]
    return np.asarray(used)[len(request.prompt) : -1].tolist()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["token_choice", slow("expert_choice"), slow("exit_gate, first keys")]
)
def test_the_engine_makes_the_ticks_that_the_schedule_counts(name):
    config, params = early(name)
    given = requests((8, 4, 7, 5))
    count = {}
    for discipline in ("depth", "sequence", "static"):
        tokens, engine = served(config, params, given, discipline)
        pairs = zip(given, tokens, strict=True)
        taken = [depths(config, params, request, each) for request, each in pairs]
        assert len(set(itertools.chain(*taken))) > 1, "all tokens take as many recursions"
        how = {"num_slots": SLOTS, "num_recursions": config.schedule.num_recursions}
        count[discipline] = simulate(taken, discipline=discipline, **how).ticks
        assert engine.ticks == count[discipline]
    assert count["depth"] < count["sequence"] <= count["static"]


def test_a_token_that_owes_keys_makes_them_when_a_later_one_goes_deeper():
    """The recursions of an engine with one slot are those of a text that is decoded alone."""
    config, params = early("exit_gate")
    assert config.owes_keys
    first = dataclasses.replace(config, kv=kv.Plan("first_recursion"))
    assert not first.owes_keys
    (request,) = requests((10,))
    how = {"num_slots": 1, "window": WINDOW, "end_of_text": -1, "discipline": "depth"}
    engine = Engine(params, config, **how)
    (done,) = engine.serve([request])
    taken = depths(config, params, request, done.tokens)
    deepest_after = np.maximum.accumulate(taken[::-1])[::-1]
    assert min(taken) < max(taken)
    assert done.recursions == engine.ticks == deepest_after.sum()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"sharing": "sequence"}, "sharing 'sequence'"),
        ({"sharing": "none"}, "attention, mlp of their own"),
        ({"kv_sharing": "groups/2"}, "kv.kv_sharing 'groups/2'"),
        ({"depth_": "nested"}, "of their own"),
    ],
)
def test_a_model_whose_recursions_cannot_share_a_batch_is_refused(options, why):
    config = points.point(**options)
    with pytest.raises(ValueError, match=why):
        served(config, draw(config), [], "depth")
