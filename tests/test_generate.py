"""Decoding draws what full forward passes in causal mode say."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from recursia.embeddings.table import Table
from recursia.generate import decode
from recursia.generate.sampling import Sampling
from tests.helpers.blocks import altered
from tests.helpers.points import block, point
from tests.helpers.tiny import VOCAB, draw, forward, tiny

PROMPT, COUNT = [3, 1, 4], 6
KEEPS_FEW = {"gating": "replace", "capacity": (0.5, 0.25)}
MODELS = {
    "fixed": tiny(recursions=2, blocks=1, is_tied=False),
    "expert_choice": tiny("expert_choice", recursions=2, blocks=1, is_tied=False, **KEEPS_FEW),
}


def generate(config, prompt=PROMPT, temperature=0.0, window=100, end=-1, seed=0, count=COUNT):
    return decode.generate(
        draw(config),
        config,
        prompt,
        num_tokens=count,
        window=window,
        sampling=Sampling(temperature),
        end_of_text=end,
        key=jax.random.key(seed),
    )


def by_hand(config, window, mode="causal"):
    """Takes the likeliest token of a forward pass of what stands there, again and again."""
    text, first = list(PROMPT), max(len(PROMPT) - window, 0)
    for _ in range(COUNT):
        if len(text) - first > window:  # the context is full: its last half goes on
            first = len(text) - max(window // 2, 1)
        logits, _ = forward(draw(config), jnp.array([text[first:]]), config, mode)
        text.append(int(logits[0, -1].argmax()))
    return text[len(PROMPT) :]


@pytest.mark.few(1)
@pytest.mark.parametrize("window", [100, 5, 2])
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_greedy_decoding_is_the_argmax_of_full_forwards(config, window):
    drawn = generate(config, window=window)
    assert drawn == by_hand(config, window)
    assert len(set(drawn)) > 1  # or any model would pass


def test_the_places_of_an_expert_are_those_of_the_text_and_not_of_the_window():
    config = dataclasses.replace(
        point("widenet", num_blocks=1),
        block=altered(block("widenet"), capacity=0.4),
        embed=Table(is_tied=False),
    )
    text = PROMPT + generate(config, temperature=2.0, count=10)
    place = len(PROMPT) + 7  # where the places of the window would draw another token
    logits, _ = forward(draw(config), jnp.array([text[:place]]), config, "causal")
    drawn = jax.random.categorical(jax.random.fold_in(jax.random.key(0), place), logits[0, -1] / 2)
    assert text[place] == drawn


@pytest.mark.slow
def test_tokens_decide_alone_how_deep_they_go():
    config = MODELS["expert_choice"]
    assert generate(config, window=5) != by_hand(config, 5, mode="eval")


def test_a_window_that_slides_forgets_what_it_left():
    config = MODELS["fixed"]
    assert generate(config, window=2) == generate(config, [7, *PROMPT[1:]], window=2)
    assert generate(config, window=100) != generate(config, window=2)


def test_draws_repeat_for_a_key_and_differ_between_keys():
    config = MODELS["expert_choice"]
    drawn = [generate(config, temperature=2.0, seed=seed) for seed in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len({tuple(d) for d in drawn}) == 3
    assert all(0 <= token < VOCAB for d in drawn for token in d)


def test_a_cold_draw_is_greedy_and_needs_no_luck():
    config = MODELS["fixed"]
    greedy = generate(config)
    assert all(generate(config, seed=seed) == greedy for seed in (1, 2))
    assert generate(config, temperature=1e-4) == greedy
    assert generate(config, temperature=50.0) != greedy


def test_a_draw_does_not_depend_on_how_many_follow():
    config = MODELS["fixed"]
    assert generate(config, temperature=2.0, count=COUNT)[:2] == generate(
        config, temperature=2.0, count=2
    )


def test_the_end_of_text_ends_it_and_is_not_returned():
    config = MODELS["fixed"]
    drawn = generate(config)
    for end in (drawn[2], drawn[0]):
        assert generate(config, end=end) == drawn[: drawn.index(end)]


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="0 tokens"):
        generate(MODELS["fixed"], [])


LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.15, 0.1]]))


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        ({}, 4),
        ({"top_k": 2}, 2),
        ({"top_k": 9}, 4),
        ({"top_p": 0.5}, 1),
        ({"top_p": 0.51}, 2),
        ({"top_p": 0.9}, 3),
        ({"min_p": 0.25}, 3),
        ({"min_p": 0.51}, 1),
        ({"top_k": 3, "min_p": 0.4}, 2),
    ],
)
def test_filters_keep_the_likeliest_tokens(sampling, kept):
    left = Sampling(1.0, **sampling).filtered(LOGITS)[0]
    assert jnp.isfinite(left).tolist() == [True] * kept + [False] * (4 - kept)
    keys = jax.random.split(jax.random.key(0), 200)
    drawn = Sampling(1.0, **sampling).draw(jnp.tile(LOGITS, (200, 1)), keys)
    assert set(drawn.tolist()) == set(range(kept))


@pytest.mark.parametrize("wrong", [{"top_p": 0.0}, {"min_p": 1.5}, {"temperature": -1.0}])
def test_a_filter_out_of_range_is_refused(wrong):
    ((field, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{field}: got {value}"):
        Sampling(**wrong)
