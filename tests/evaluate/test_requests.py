"""Scores of requests equal a direct forward pass, however they are batched and padded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import sharding
from recursia.errors import DataError
from recursia.evaluate import continuations as decoding
from recursia.evaluate import requests
from recursia.evaluate.requests import Request, score
from recursia.evaluate.shapes import Place, padded
from recursia.generate import decode
from tests.helpers.points import DEPTHS, point
from tests.helpers.tiny import VOCAB, draw, forward

CONTEXT = 40
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


@pytest.mark.parametrize("depth", DEPTHS)
def test_answers_equal_a_direct_pass_for_every_depth_policy(depth):
    config = point(depth_=depth)
    params, asked = draw(config), drawn_requests(5)
    for mode in config.modes:
        answers = score(params, config, asked, place(mode))
        assert_as_directly(params, config, asked, answers, mode)


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


def test_a_greedy_continuation_is_greedy_and_another_is_not():
    config = point()
    params = draw(config)
    (ids,) = decoding.continuations(params, config, [[1, 2, 3]], place(), **greedily(4))
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


def greedily(count, **how):
    return {
        "num_tokens": count,
        "temperature": 0,
        "end_of_text": -1,
        "seed": 0,
        "is_done": lambda index, ids: False,
    } | how


@pytest.mark.parametrize("depth", ["fixed", "expert_choice", "token_choice"])
def test_continuations_equal_those_of_one_prompt_at_a_time(depth):
    config = point(depth_=depth)
    params = draw(config)
    prompts = [[1, 2, 3], [4], list(range(20)), [7, 8, 9, 10, 11]]
    found = decoding.continuations(params, config, prompts, place(), **greedily(5))
    key = jax.random.key(0)
    how = {"num_tokens": 5, "window": CONTEXT, "temperature": 0, "end_of_text": -1, "key": key}
    assert found == [decode.generate(params, config, prompt, **how) for prompt in prompts]


def test_a_continuation_ends_where_it_is_told_and_others_go_on():
    config = point()
    params = draw(config)
    prompts = [[1, 2, 3], [4, 5], [6]]
    whole = decoding.continuations(params, config, prompts, place(), **greedily(6))
    stop = lambda index, ids: index == 1 and len(ids) == 2
    found = decoding.continuations(params, config, prompts, place(), **greedily(6, is_done=stop))
    assert found == [whole[0], whole[1][:2], whole[2]]
    end = whole[0][3]
    found = decoding.continuations(params, config, prompts, place(), **greedily(6, end_of_text=end))
    cut = [ids[: ids.index(end)] if end in ids else ids for ids in whole]
    assert found == cut


def test_draws_depend_on_the_seed_and_not_on_the_batch():
    config = point()
    params = draw(config)
    prompts = [[1, 2, 3], [4, 5], [6], [7, 8]]
    draws = lambda **how: decoding.continuations(
        params, config, prompts, how.pop("at", place()), **greedily(6, temperature=1.0, **how)
    )
    first = draws()
    assert first == draws(at=place(batch_tokens=CONTEXT)) == draws(at=place(devices=4))
    assert first != draws(seed=1)
