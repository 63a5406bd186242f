"""Scores of requests equal a direct forward pass, however they are batched and padded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import sharding
from recursia.data.vocabulary import ByteTokenizer
from recursia.errors import DataError
from recursia.evaluate import requests
from recursia.evaluate.continuations import Way, continuations
from recursia.evaluate.requests import Request, score
from recursia.evaluate.shapes import Place, padded
from recursia.generate import decode
from recursia.generate.continuation import Stops
from recursia.generate.sampling import Sampling
from tests.helpers import exhaustive, slow
from tests.helpers.points import DEPTHS, point
from tests.helpers.tiny import VOCAB, draw, forward

CONTEXT = 40
CACHED = ("expert_choice", "recurrent")  # with caches of other kinds
MESH = sharding.MeshConfig(data=1)


def place(mode="causal", devices=1, batch_tokens=3 * CONTEXT):
    mesh = sharding.make_mesh(sharding.MeshConfig(data=devices), jax.devices()[:devices])
    return Place(mode, mesh, MESH.rules, CONTEXT, batch_tokens)


def drawn_requests(count=11, seed=0):
    """Returns requests of several lengths, some of which share all but their last token."""
    rng = np.random.default_rng(seed)
    ids = lambda size: tuple(rng.integers(0, VOCAB, size).tolist())
    found = [Request(ids(rng.integers(1, 26)), ids(rng.integers(1, 12))) for _ in range(count)]
    shared = ids(9)
    return found + [Request(shared, (token,)) for token in range(6)] + [Request(ids(3), ())]


def directly(params, config, request, mode):
    """Returns log-likelihood, greediness and depth of one row by itself."""
    if not request.continuation:
        return 0.0, True, float("nan")
    kept = (request.context + request.continuation)[-(CONTEXT + 1) :]
    logits, aux = forward(params, jnp.array([kept[:-1]]), config, mode)
    chosen = jax.nn.log_softmax(logits[0])[-len(request.continuation) :]
    targets = np.array(request.continuation)
    total = float(chosen[np.arange(len(targets)), targets].sum())
    greedy = bool((np.asarray(chosen).argmax(-1) == targets).all())
    return total, greedy, float(aux.depth_used.mean())


def assert_as_directly(params, config, asked, answers, mode):
    for request, answer in zip(asked, answers, strict=True):
        total, greedy, depth = directly(params, config, request, mode)
        assert answer.log_likelihood == pytest.approx(total, abs=2e-4, rel=1e-5)
        assert answer.is_greedy == greedy
        np.testing.assert_allclose(answer.mean_depth, depth, rtol=1e-5)


ANSWERS = ("fixed", "token_choice", *CACHED)


@pytest.mark.few(1)
@pytest.mark.parametrize("depth", [d if d in ANSWERS else exhaustive(d) for d in DEPTHS])
def test_answers_equal_a_direct_pass_for_every_depth_policy(depth):
    config = point(depth_=depth)
    params, asked = draw(config), drawn_requests(5)
    for mode in config.modes:
        answers = score(params, config, asked, place(mode))
        assert_as_directly(params, config, asked, answers, mode)


@pytest.mark.slow
def test_a_batch_and_its_devices_change_nothing():
    config = point(depth_="expert_choice")
    params, asked = draw(config), drawn_requests()
    whole = score(params, config, asked, place("eval"))
    alone = [score(params, config, [each], place("eval"))[0] for each in asked]
    spread = score(params, config, asked, place("eval", devices=8))
    for other in (alone, spread):
        for ours, theirs in zip(whole, other, strict=True):
            assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, abs=1e-4)
            assert ours.is_greedy == theirs.is_greedy


def test_answers_come_in_the_order_of_the_requests():
    config = point()
    params, asked = draw(config), drawn_requests()
    answers = score(params, config, asked, place())
    backwards = score(params, config, asked[::-1], place())
    for ours, theirs in zip(answers, backwards[::-1], strict=True):
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, abs=1e-4)


@pytest.mark.slow
def test_a_greedy_continuation_is_greedy_and_another_is_not():
    config = point()
    params = draw(config)
    (ids,) = continued(config, [[1, 2, 3]], count=4)
    found, other = score(
        params,
        config,
        [Request((1, 2, 3), tuple(ids)), Request((1, 2, 3), ((ids[0] + 1) % VOCAB, *ids[1:]))],
        place(),
    )
    assert found.is_greedy and not other.is_greedy


def test_requests_that_differ_in_their_last_token_are_one_row(monkeypatch):
    config = point()
    params = draw(config)
    asked = [Request((1, 2, 3), (4, token)) for token in range(VOCAB)]
    seen = []
    real = requests._arrays
    monkeypatch.setattr(
        requests, "_arrays", lambda part, *a: seen.append(len(part)) or real(part, *a)
    )
    answers = score(params, config, asked, place())
    assert seen == [1]
    total = np.logaddexp.reduce([answer.log_likelihood for answer in answers])
    first = score(params, config, [Request((1, 2, 3), (4,))], place())[0].log_likelihood
    assert total == pytest.approx(first, abs=1e-4)  # the last token's probabilities sum to 1
    assert_as_directly(params, config, asked, answers, "causal")


def test_a_request_longer_than_the_context_keeps_its_end():
    config = point()
    params = draw(config)
    long = Request(tuple(range(VOCAB)) * 2, (5, 6))
    assert requests.is_cut(long, CONTEXT) and not requests.is_cut(long, 2 * VOCAB + 1)
    answers = score(params, config, [long], place())
    assert_as_directly(params, config, [long], answers, "causal")


def test_a_continuation_longer_than_the_context_is_the_sum_of_its_parts():
    config = point()
    params, ids = draw(config), tuple(range(VOCAB)) * 3
    whole, *parts = score(
        params,
        config,
        [
            Request(ids[:3], ids[3:90]),
            Request(ids[:3], ids[3:43]),
            Request(ids[:43], ids[43:83]),
            Request(ids[:83], ids[83:90]),
        ],
        place(),
    )
    total = sum(part.log_likelihood for part in parts)
    assert whole.log_likelihood == pytest.approx(total, abs=1e-4)
    assert whole.is_greedy == all(part.is_greedy for part in parts)


def test_an_empty_context_is_refused():
    with pytest.raises(DataError, match="0 tokens"):
        score({}, point(), [Request((), (1,))], place())


def test_there_are_few_shapes():
    lengths = {padded(length, 2048) for length in range(1, 5000)}
    assert len(lengths) == 10 and max(lengths) == 2048
    for length in range(1, 2049):
        assert length <= padded(length, 2048) < max(33, 2 * length)


def continued(config, prompts, at=None, stops=(), count=5, temperature=0.0, seed=0, end=256):
    """Returns the ids that follow prompts; an id that the model has not ends no text."""
    tokenizer = ByteTokenizer()
    tokenizer.end_of_text = end
    way = Way(Stops(stops), count, Sampling(temperature))
    how = {"tokenizer": tokenizer, "seed": seed}
    found = continuations(draw(config), config, prompts, at or place(), way, **how)
    return [each.tokens for each in found]


PROMPTS = [[1, 2, 3], [4], list(range(20)), [7, 8, 9, 10, 11]]


def whole_texts():
    """Returns a model that no KV cache serves."""
    config = point(depth_="recurrent")
    depth = dataclasses.replace(config.depth, exit="kl", exit_threshold=0.01)
    config = dataclasses.replace(config, depth=depth)
    assert not config.is_incremental
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    "depth",
    ["fixed", "uncached", slow("expert_choice")]
    + [exhaustive(depth) for depth in DEPTHS if depth not in ("fixed", "expert_choice")],
)
def test_continuations_equal_those_of_one_prompt_at_a_time(depth):
    """Also where a text fills the context, and where draws are random."""
    config = whole_texts() if depth == "uncached" else point(depth_=depth)
    params, sampling, prompts = draw(config), Sampling(1.0), [*PROMPTS, [1] * (CONTEXT - 2)]
    found = continued(config, prompts, temperature=1.0)
    for index, (prompt, ids) in enumerate(zip(prompts, found, strict=True)):
        key = jax.random.fold_in(jax.random.key(0), index)
        how = {"window": CONTEXT, "sampling": sampling, "end_of_text": -1, "key": key}
        assert ids == decode.generate(params, config, prompt, num_tokens=5, **how)


@pytest.mark.slow
def test_a_continuation_ends_where_it_is_told_and_others_go_on():
    config = point()
    whole = continued(config, PROMPTS, count=8)
    text = [bytes(ids).decode() for ids in whole]
    stop = text[1][2:4]
    found = continued(config, PROMPTS, count=8, stops=(stop,))
    for ids, every in zip(found, text, strict=True):
        at = every.find(stop)
        assert bytes(ids).decode() == (every if at < 0 else every[: at + 2])
    assert len(found[1]) < 8
    end = whole[0][3]
    cut = [ids[: ids.index(end)] if end in ids else ids for ids in whole]
    assert continued(config, PROMPTS, count=8, end=end) == cut


@pytest.mark.slow
def test_draws_depend_on_the_seed_and_not_on_the_batch():
    config = point()
    draws = lambda **how: continued(config, PROMPTS, temperature=1.0, **how)
    first = draws()
    assert first == draws(at=place(batch_tokens=CONTEXT)) == draws(at=place(devices=4))
    assert first != draws(seed=1)


@pytest.mark.slow
def test_an_uncached_model_is_split_over_devices_too():
    config = whole_texts()
    assert continued(config, PROMPTS) == continued(config, PROMPTS, at=place(devices=4))
