"""A recursive model started from a dense one: which layers, and how near it comes."""

import dataclasses

import jax
import numpy as np
import pytest

from recursia import model
from recursia.architecture import Model
from recursia.convert.recursive import layers, recursive, sources, uses
from recursia.depth import expert_choice, fixed
from recursia.embeddings.table import Table
from recursia.layers.initial import Init
from recursia.sharing import lora, tied
from tests.helpers import points
from tests.helpers.blocks import altered
from tests.helpers.refusals import refused
from tests.helpers.tiny import BLOCK, VOCAB, assert_close, draw, forward, is_equal, text

STARTS = ("stepwise", "average", "lower", "upper", "random")
PRIVATE = (("norms", "recursion+block"),)
KEY = jax.random.key(7)


def build(
    pattern="cycle", num_layers=6, recursions=3, depth=fixed.Fixed, vocab_size=VOCAB, **options
):
    """Returns a model of six layers."""
    block = options.pop("block", BLOCK)
    return Model(num_layers, block, depth(recursions), pattern, vocab_size=vocab_size, **options)


def relaxed(pattern="cycle", rank=99, scale=2.0, num_layers=6, varies=PRIVATE):
    weights = lora.Lora(rank, scale=scale)
    return build(pattern, num_layers, weights=weights, varies=varies)


DENSE = build("none", 6, 1)
DENSE_8 = build("none", 8, 1)


# Rounded by hand: halves go to the even layer.
STEPWISE = {
    (18, 2, "cycle"): [0, 2, 4, 6, 8, 11, 13, 15, 17],
    (18, 3, "cycle"): [0, 3, 7, 10, 14, 17],
    (18, 3, "sequence"): [0, 3, 7, 10, 14, 17],
    (6, 3, "cycle"): [0, 5],
    (6, 2, "cycle"): [0, 2, 5],
    (6, 6, "cycle"): [0],
    (8, 2, "middle_cycle"): [1, 4, 6],  # 1, 3.5, 6; counted from the core it would be 3
    (8, 3, "middle_sequence"): [1, 6],
}


@pytest.mark.parametrize(("layers", "recursions", "pattern"), STEPWISE)
def test_stepwise_spreads_evenly_and_keeps_both_ends(layers, recursions, pattern):
    target = build(pattern, layers, recursions)
    expected = [[layer] for layer in STEPWISE[layers, recursions, pattern]]
    assert sources(target, "mlp", "stepwise", None) == expected


@pytest.mark.parametrize(
    ("pattern", "num_layers", "start", "expected"),
    [
        ("cycle", 6, "average", [[0, 2, 4], [1, 3, 5]]),
        ("sequence", 6, "average", [[0, 1, 2], [3, 4, 5]]),
        ("middle_cycle", 8, "average", [[1, 3, 5], [2, 4, 6]]),
        ("middle_sequence", 8, "average", [[1, 2, 3], [4, 5, 6]]),
        ("cycle", 6, "lower", [[0], [1]]),
        ("sequence", 6, "upper", [[4], [5]]),
        ("middle_cycle", 8, "lower", [[1], [2]]),
        ("middle_sequence", 8, "upper", [[5], [6]]),
    ],
)
def test_an_entry_starts_as_these_layers(pattern, num_layers, start, expected):
    assert sources(build(pattern, num_layers), "mlp", start, None) == expected


def test_entries_of_a_table_take_layers_in_the_order_of_their_use():
    target = build(varies=(("mlp", ((2, 0), (0, 1), (2, 1))),))
    assert uses(target, "mlp") == [[1, 2], [3, 5], [0, 4]]
    assert sources(target, "mlp", "average", None) == [[1, 2], [3, 5], [0, 4]]
    assert sources(target, "mlp", "lower", None) == [[1], [2], [0]]
    assert sources(target, "mlp", "stepwise", None) == [[2], [5], [0]]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("pattern", ["cycle", "sequence"])
def test_where_nothing_is_shared_every_layer_is_its_own(pattern, start):
    target = build(pattern, varies=(("mlp", "recursion+block"),))
    own = [[0], [1], [2], [3], [4], [5]] if pattern == "cycle" else [[0], [3], [1], [4], [2], [5]]
    assert sources(target, "mlp", start, np.array([3, 1, 5, 0, 2, 4])) == own


def test_random_layers_are_distinct_in_order_and_of_the_key():
    assert sources(build("middle_cycle", 14), "mlp", "random", np.array([9, 2, 11, 0, 1])) == [
        [1],
        [3],
        [10],
        [12],
    ]
    params, target = draw(DENSE), build()
    drawn = [recursive(params, DENSE, target, "random", key=jax.random.key(i)) for i in range(6)]
    weights = {np.asarray(found["core"]["mlp"]["up"]).tobytes() for found in drawn}
    assert 1 < len(weights) <= 6
    theirs = [np.asarray(w["mlp"]["up"]) for w in layers(params, DENSE)]
    for found in drawn:
        chosen = [[np.array_equal(up, w) for w in theirs] for up in found["core"]["mlp"]["up"]]
        assert np.sum(chosen, 1).tolist() == [1, 1]
        assert np.argmax(chosen[0]) < np.argmax(chosen[1])


@pytest.mark.parametrize("name", ["llama", "universal", "huginn"])
def test_every_leaf_of_any_block_is_the_mean_of_its_layers(name):
    dense = points.point(name, sharing="none", recursions=1, num_blocks=8)
    target = points.point(name, sharing="middle_cycle", recursions=3, num_blocks=2)
    params = draw(dense)
    found = recursive(params, dense, target, "average", norms="upper", key=KEY)
    specs = target.block_specs
    for slot, tree in specs.items():
        theirs = params["core"][slot]
        for end, layer in (("prelude", 0), ("coda", 7)):
            assert is_equal(found[end][slot], jax.tree.map(lambda w, i=layer: w[i : i + 1], theirs))

        def entries(spec, w):
            w = np.asarray(w, np.float64)
            return np.stack([w[1::2][:3].mean(0), w[2::2].mean(0)]) if spec.is_decayed else w[5:7]

        assert_close(found["core"][slot], jax.tree.map(entries, tree, theirs))
    assert is_equal(found["embed"], params["embed"])


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("pattern", ["cycle", "sequence", "middle_cycle", "middle_sequence"])
def test_adapters_of_full_rank_make_it_the_dense_model(pattern, start):
    dense, num_layers = (DENSE_8, 8) if pattern.startswith("middle_") else (DENSE, 6)
    target = relaxed(pattern, num_layers=num_layers)
    params = draw(dense)
    found = recursive(params, dense, target, start, key=KEY)
    assert jax.tree.map(np.shape, found) == jax.tree.map(lambda s: s.shape, model.specs(target))
    assert_close(layers(found, target), layers(params, dense))
    if start == "average":
        assert_close(forward(found, text(), target)[0], forward(params, text(), dense)[0])


def test_adapters_of_less_rank_leave_the_smallest_singular_values():
    rank, params = 3, draw(DENSE)
    target = relaxed(rank=rank)
    found = recursive(params, DENSE, target, "stepwise", key=KEY)
    shared = recursive(params, DENSE, build(varies=PRIVATE), "stepwise", key=KEY)
    for layer, (ours, theirs) in enumerate(
        zip(layers(found, target), layers(params, DENSE), strict=True)
    ):
        for slot, name in (("attention", "out"), ("mlp", "up")):
            wide = lambda w: np.asarray(w, np.float64).reshape(16, -1)
            base = wide(shared["core"][slot][name][layer % 2])
            values = np.linalg.svd(wide(theirs[slot][name]) - base, compute_uv=False)
            left = np.linalg.norm(wide(theirs[slot][name]) - wide(ours[slot][name]))
            np.testing.assert_allclose(left, np.linalg.norm(values[rank:]), rtol=1e-4, atol=1e-4)
            assert (layer in (0, 5)) == (left < 1e-4)  # the layers that were taken miss nothing


def test_adapters_that_are_shared_take_the_mean_of_what_is_missing():
    params = draw(DENSE)
    target = relaxed(varies=(("mlp_lora", "recursion"),))
    found = recursive(params, DENSE, target, "lower", key=KEY)
    ours = np.stack([w["mlp"]["down"] for w in layers(found, target)]).reshape(3, 2, 24, 16)
    theirs = np.asarray(params["core"]["mlp"]["down"]).reshape(3, 2, 24, 16)
    assert_close(ours.mean(1), theirs.mean(1))


@pytest.mark.parametrize("start", STARTS)
def test_of_equal_layers_it_is_the_dense_model(start):
    params = draw(DENSE)
    first = jax.tree.map(lambda w: np.broadcast_to(w[:1], w.shape), params["core"])
    params = {**params, "core": first}
    found = recursive(params, DENSE, build(), start, key=KEY)
    assert_close(found["core"], jax.tree.map(lambda w: w[:2], first))
    if start == "average":
        assert_close(forward(found, text(), build())[0], forward(params, text(), DENSE)[0])


def test_adapters_from_zero_change_nothing_and_those_of_an_svd_do():
    params, target = draw(DENSE), relaxed(rank=2)
    made = lambda **how: recursive(params, DENSE, target, "average", key=KEY, **how)
    plain = recursive(params, DENSE, build(varies=PRIVATE), "average", key=KEY)
    logits = forward(plain, text(), build(varies=PRIVATE))[0]
    assert is_equal(forward(made(adapters="zero"), text(), target)[0], logits)
    assert not np.allclose(forward(made(), text(), target)[0], logits, atol=0.1)


@pytest.mark.parametrize("pattern", ["cycle", "sequence", "middle_sequence"])
def test_a_target_that_shares_nothing_unrolls_a_relaxed_model(pattern):
    num_layers = 8 if pattern.startswith("middle_") else 6
    shared = relaxed(pattern, rank=3, num_layers=num_layers)
    dense = DENSE_8 if num_layers == 8 else DENSE
    params = draw(shared)
    found = recursive(params, shared, dense, "stepwise", key=KEY)
    assert_close(forward(found, text(), dense)[0], forward(params, text(), shared)[0])


def test_what_the_dense_model_has_not_starts_as_in_a_new_model():
    target, params = build(depth=expert_choice.ExpertChoice), draw(DENSE)
    found = recursive(params, DENSE, target, "stepwise", key=KEY)
    assert is_equal(found["depth"], model.init(target, KEY)["depth"])
    assert np.isfinite(forward(found, text(), target, "causal")[0]).all()


def test_head_embedding_and_final_norm_are_copied():
    own = dict(embed=Table(is_tied=False))
    dense, target = build("none", 6, 1, **own), build(**own)
    params = draw(dense)
    found = recursive(params, dense, target, "upper", key=KEY)
    for name in ("embed", "final_norm"):
        assert is_equal(found[name], params[name])
    assert set(found["embed"]) == {"table", "head"}


WIDE = altered(BLOCK, mlp_dim=32)
REFUSED = {
    "depth": (build(num_layers=9), {}, ("num_layers", 9, 6)),
    "width": (build(block=WIDE), {}, ("mlp_dim", 32, 24)),
    "vocabulary": (build(vocab_size=VOCAB + 1), {}, ("vocab_size", 33)),
    "head": (build(embed=Table(is_tied=False)), {}, ("embed.is_tied", False)),
    "start": (build(), {"start": "middle"}, ("start", "'middle'", "stepwise", "average")),
    "norms": (build(), {"norms": "zero"}, ("norms", "'zero'")),
    "adapters": (build(), {"adapters": "near"}, ("adapters", "'near'", "svd", "zero")),
}


@pytest.mark.parametrize(("target", "how", "why"), REFUSED.values(), ids=REFUSED)
def test_models_that_do_not_fit_are_refused_in_one_line(target, how, why):
    with refused(ValueError, *why):
        recursive(draw(DENSE), DENSE, target, **{"start": "stepwise", "key": KEY, **how})


def test_initial_scales_may_differ():
    narrow = altered(BLOCK, init=Init(std=0.1))
    target = dataclasses.replace(build(), block=narrow, weights=tied.Tied())
    assert recursive(draw(DENSE), DENSE, target, "lower", key=KEY)
