"""Experts: equal to dense sums over one-hot choices, exact counts, and places.

The dense form exists here alone: NumPy float64, every expert for every token.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia.feedforward.softmax_moe import SoftmaxMoE
from recursia.layers import experts
from recursia.layers.attention import Context
from recursia.traced_flops import count_flops
from tests.helpers.by_hand import gelu
from tests.helpers.tiny import assert_close, counted, error, is_equal, normal, tol

D, M = 6, 10
RELU = jax.nn.relu


def banks(num_experts, seed=0):
    """Returns up, down and their biases."""
    shapes = ((D, M), (M, D), (M,), (D,))
    return tuple(normal(num_experts, *shape, seed=seed + i) for i, shape in enumerate(shapes))


def random_choice(lead, k, num_experts, seed=0):
    logits = normal(*lead, num_experts, seed=seed)
    return experts.choose(logits, k, score="sigmoid", is_renormalised=False)


def one_hot(choice, num_experts):
    """Returns float64 weights [... E], zero for experts not chosen."""
    hot = np.asarray(choice.index)[..., None] == np.arange(num_experts)
    return (np.asarray(choice.weight, np.float64)[..., None] * hot).sum(-2)


def mlp(x, index, weight, up, down, up_bias, down_bias):
    choice = experts.Choice(index, weight)
    biases = {"up_bias": up_bias, "down_bias": down_bias}
    return experts.expert_mlp(x, choice, up, down, jnp.tanh, **biases)


def by_hand(x, index, weight, up, down, up_bias, down_bias, gradient):
    """Returns the dense form of `mlp` and the gradients of `(mlp * gradient).sum()`, in float64.

    In the order of the arguments but the index, whose gradient does not exist.
    """
    wide = lambda a: np.asarray(a, np.float64)
    x, up, down, up_bias, down_bias, gradient = map(
        wide, (x, up, down, up_bias, down_bias, gradient)
    )
    num = up.shape[0]
    gate = one_hot(experts.Choice(index, weight), num)
    h = np.tanh(np.einsum("...d,edm->...em", x, up) + up_bias)
    y = np.einsum("...em,emd->...ed", h, down) + down_bias
    of_gate = np.einsum("...d,...ed->...e", gradient, y)
    of_y = gate[..., None] * gradient[..., None, :]
    of_h = np.einsum("...ed,emd->...em", of_y, down) * (1 - h**2)
    flat = lambda a, tail: a.reshape(-1, *a.shape[a.ndim - tail :])
    return np.einsum("...e,...ed->...d", gate, y), (
        np.einsum("...em,edm->...d", of_h, up),
        np.take_along_axis(of_gate, np.asarray(index), -1),
        np.einsum("nd,nem->edm", flat(x, 1), flat(of_h, 2)),
        np.einsum("nem,ned->emd", flat(h, 2), flat(of_y, 2)),
        flat(of_h, 2).sum(0),
        flat(of_y, 2).sum(0),
    )


def routings():
    """Yields experts chosen of 5, for 2 x 70 tokens: more than one block of rows."""
    for k in range(1, 6):
        yield f"top_{k}", random_choice((2, 70), k, 5).index
    for expert in (0, 2, 4):
        yield f"all_to_{expert}", jnp.full((2, 70, 1), expert)
    yield "two_empty", jnp.asarray(np.random.default_rng(0).choice([1, 3, 4], (2, 70, 2)))
    yield "a_block_each", jnp.repeat(jnp.array([3, 1]), 64)[None, :, None]
    yield "one_token", jnp.array([[3, 0]])


@pytest.mark.parametrize(("name", "index"), list(routings()))
def test_values_and_gradients_are_those_of_the_dense_form(name, index):
    lead, (up, down, up_bias, down_bias) = index.shape[:-1], banks(5)
    args = (normal(*lead, D), index, normal(*index.shape), up, down, up_bias, down_bias)
    gradient = normal(*lead, D, seed=9)
    value, vjp = jax.vjp(jax.jit(lambda x, *rest: mlp(x, index, *rest)), args[0], *args[2:])
    assert_close((value, vjp(gradient)), by_hand(*args, gradient), n=500)


@pytest.mark.parametrize("lead", [(), (1,), (7,), (2, 1, 3, 2)])
@pytest.mark.parametrize("num_experts", [1, 3])
def test_leading_axes_are_tokens_alike(lead, num_experts):
    x, weights = normal(*lead, D), banks(num_experts)
    choice = random_choice(lead, num_experts, num_experts)
    gradient = jnp.zeros_like(x)
    expected = by_hand(x, choice.index, choice.weight, *weights, gradient)[0]
    assert_close(mlp(x, choice.index, choice.weight, *weights), expected)


@pytest.mark.slow
def test_bfloat16_rows_and_banks_stay_so_and_sum_in_float32():
    cast = lambda tree: jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)
    choice = random_choice((90,), 2, 3)
    x, weights = cast((normal(90, D), banks(3)))
    loss = lambda x, weights: mlp(x, choice.index, choice.weight, *weights).sum()
    y = mlp(x, choice.index, choice.weight, *weights)
    assert y.dtype == jnp.bfloat16
    expected, gradients = by_hand(x, choice.index, choice.weight, *weights, jnp.ones_like(x))
    assert error(y, expected) <= tol(jnp.bfloat16, 4)
    ours = jax.grad(loss, (0, 1))(x, weights)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype(jnp.bfloat16)}
    assert error(ours, (gradients[0], gradients[2:])) <= tol(jnp.bfloat16, 9)
    # In bfloat16, 256 + 1 + 1 is 256: each term is the sum of one block of rows.
    rows = jnp.zeros((192, 1), jnp.bfloat16).at[:64].set(4).at[jnp.array([64, 128])].set(1)
    of_bank = jax.grad(lambda b: experts.grouped_matmul(rows, b, jnp.array([192])).sum())
    assert of_bank(jnp.ones((1, 1, 1), jnp.bfloat16)).item() == 258


def test_a_grouped_product_takes_empty_groups_anywhere_and_no_rows():
    bank = normal(4, D, M)
    for sizes in set(itertools.permutations((0, 0, 65, 3))) | {(0, 0, 0, 0), (0, 0, 0, 1)}:
        rows = normal(sum(sizes), D)
        expected = np.einsum("nd,ndm->nm", rows, np.repeat(bank, sizes, axis=0))
        ours = experts.grouped_matmul(rows, bank, jnp.array(sizes))
        assert np.allclose(ours, expected, atol=1e-5) and ours.shape == expected.shape


@pytest.mark.parametrize(
    ("score", "is_renormalised", "weights"),
    [
        ("sigmoid", False, (0.8, 0.5)),
        ("sigmoid", True, (0.8 / 1.300001, 0.5 / 1.300001)),
        ("softmax", False, (4 / 6.25, 1 / 6.25)),
        ("softmax", True, (0.64 / 0.800001, 0.16 / 0.800001)),
    ],
)
def test_the_best_are_chosen_with_their_scores_and_ties_go_to_the_earlier(
    score, is_renormalised, weights
):
    logits = jnp.log(jnp.array([0.25, 1.0, 4.0, 1.0]))
    choice = experts.choose(logits, 2, score=score, is_renormalised=is_renormalised)
    assert choice.index.tolist() == [2, 1]
    assert np.allclose(choice.weight, weights, rtol=1e-6)


def test_gradients_reach_logits_through_weights_alone():
    logits = normal(7, 4)
    choose = functools.partial(experts.choose, k=2, score="sigmoid", is_renormalised=False)
    ours = jax.grad(lambda z: (choose(z).weight * jnp.array([1.0, 3.0])).sum())(logits)
    choice, s = choose(logits), jax.nn.sigmoid(logits)
    factor = one_hot(choice.replace(weight=jnp.array([1.0, 3.0])), 4)
    assert_close(ours, factor * np.asarray(s * (1 - s), np.float64))


def test_softmax_experts_with_biases_have_gates_that_sum_to_one():
    layer = SoftmaxMoE(4, 2, M, has_bias=True, is_renormalised=True)
    weights = jax.tree.map(lambda spec: normal(*spec.shape), layer.specs(D, num_steps=1))
    assert weights["experts"].keys() == {"up", "down", "up_bias", "down_bias"}
    x = normal(2, 5, D)
    rows, (w, router) = np.asarray(x), jax.tree.map(np.asarray, tuple(weights.values()))
    logits, hand = rows @ router, np.zeros(x.shape)
    for place in np.ndindex(2, 5):
        best = np.argsort(-logits[place])[:2]
        gates = np.exp(logits[place][best])
        for expert, gate in zip(best, gates / gates.sum(), strict=True):
            hidden = gelu(rows[place] @ w["up"][expert] + w["up_bias"][expert])
            hand[place] += gate * (hidden @ w["down"][expert] + w["down_bias"][expert])
    context = Context(jnp.zeros((2, 5), jnp.int32))
    ours = jax.jit(lambda weights, x: layer.apply(weights, x, x, context)[0])(weights, x)
    assert_close(ours, hand, n=1024)


def test_heads_take_from_their_own_experts():
    heads, own = 3, 4
    x, bank = normal(2, 5, D), normal(heads * own, D, M)
    choice = experts.by_head(random_choice((2, 5, heads), 2, own), own)
    split = choice.index.shape
    value = experts.project(x, choice.index.reshape(2, 5, -1), bank).reshape(*split, M)
    value = experts.mix(value, choice.weight)
    gate = one_hot(choice, heads * own)
    each = np.einsum("btd,edm->btem", np.asarray(x, np.float64), bank)
    assert_close(value, np.einsum("btne,btem->btnm", gate, each))
    for head in range(heads):
        assert set(np.unique(choice.index[:, :, head])) <= set(range(head * own, head * own + own))
    # Back: each head's own state, to its experts, summed over heads.
    out = normal(heads * own, M, D)
    y = experts.project(value, choice.index, out).reshape(2, 5, -1, D)
    y = experts.mix(y, choice.weight.reshape(2, 5, -1))
    dense = np.einsum("btne,btnm,emd->btd", gate, np.asarray(value, np.float64), out)
    assert_close(y, dense)
    value = experts.project_and_mix(x, choice.index.reshape(2, 5, -1), choice.weight, bank)
    y = experts.project_and_mix(value, choice.index, choice.weight.reshape(2, 5, -1), out)
    assert_close(y, dense)


def test_inputs_of_each_choice_go_to_its_expert():
    choice, bank = random_choice((2, 5), 3, 4), normal(4, D, M)
    x = normal(2, 5, 3, D)
    y = experts.project(x, choice.index[..., None], bank)[..., 0, :]
    dense = np.einsum("btkd,btkdm->btkm", np.asarray(x, np.float64), bank[choice.index])
    assert_close(y, dense)


PLACES = [
    # capacity, experts of each token, which keep their weight
    (1.0, [[0], [0], [0], [1]], [[1], [1], [0], [1]]),
    (0.5, [[0], [0], [1], [1]], [[1], [0], [1], [0]]),
    (0.1, [[1], [1], [1], [1]], [[1], [0], [0], [0]]),
    (1.5, [[0], [0], [0], [0]], [[1], [1], [1], [0]]),
    (0.5, [[0, 1], [1, 0], [1, 0], [0, 1]], [[1, 1], [1, 1], [0, 0], [0, 0]]),
    (0.6, [[0, 1], [1, 0], [1, 0], [0, 1]], [[1, 1], [1, 1], [1, 1], [0, 0]]),
    (None, [[0], [0], [0], [0]], [[1], [1], [1], [1]]),
]


@pytest.mark.parametrize(("capacity", "index", "kept"), PLACES)
def test_places_go_to_earlier_tokens_of_each_row(capacity, index, kept):
    index = jnp.array([index, index])
    weight = jax.random.uniform(jax.random.key(0), index.shape) + 0.5
    limited = experts.limit(experts.Choice(index, weight), 2, capacity)
    assert is_equal(limited.weight, weight * jnp.array(kept))
    assert is_equal(limited.index, index)


def test_places_are_counted_in_decimals():
    index = jnp.zeros((1, 20, 1), int)  # 20 * 1.1 / 2 = 11, and 11.000000000000002 in floats
    limited = experts.limit(experts.Choice(index, jnp.ones(index.shape)), 2, 1.1)
    assert limited.weight.sum() == 11


def test_under_a_capacity_no_token_sees_a_later_one():
    weights = banks(3)

    @jax.jit
    def run(x, logits):
        choice = experts.choose(logits, 2, score="softmax", is_renormalised=False)
        limited = experts.limit(choice, 3, 0.8)
        return mlp(x, limited.index, limited.weight, *weights), limited.weight

    x, logits = normal(2, 16, D), normal(2, 16, 3)
    whole, weight = run(x, logits)
    assert (weight == 0).any()
    for t in (1, 7, 15):
        later = lambda a, t=t: a.at[:, t:].set(normal(*a[:, t:].shape, seed=5))
        assert is_equal(run(later(x), later(logits))[0][:, :t], whole[:, :t])
    other = run(x.at[1].set(0), logits.at[1].set(0))[0]
    assert is_equal(other[0], whole[0])


@pytest.mark.slow
def test_what_has_no_place_changes_nothing_and_gets_no_gradient():
    x, weights = normal(1, 8, D), banks(2)
    choice = random_choice((1, 8), 1, 2)
    limited = experts.limit(choice, 2, 0.5)
    is_in = np.asarray(limited.weight[0, :, 0] > 0)
    assert 2 <= is_in.sum() <= 4
    run = lambda x, choice: mlp(x, choice.index, choice.weight, *weights)
    y = run(x, limited)
    assert is_equal(y[:, is_in], run(x, choice)[:, is_in])
    assert not y[:, ~is_in].any()
    gradient = jax.grad(lambda x: run(x, limited).sum())(x)
    assert not gradient[:, ~is_in].any() and gradient[:, is_in].all()


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_flops_are_counted_exactly_whatever_the_padding(steps, remat):
    tokens, k, num_experts = 37, 3, 7
    choice = random_choice((tokens,), k, num_experts)
    up, down, *_ = banks(num_experts)

    def loss(x, up, down, weight):
        apply = lambda x: experts.expert_mlp(x, choice.replace(weight=weight), up, down, RELU)
        apply = jax.checkpoint(apply) if remat else apply
        return jax.lax.scan(lambda x, _: (x + apply(x), None), x, length=steps)[0].sum()

    args = (normal(tokens, D), up, down, choice.weight)
    forward = steps * tokens * k * 4 * D * M
    assert count_flops(jax.make_jaxpr(loss)(*args)) == forward
    both = jax.make_jaxpr(jax.value_and_grad(loss, (0, 1, 2, 3)))(*args)
    again = forward // 2 if remat else 0  # nothing needs the last product again
    assert count_flops(both) == 3 * forward + again


def test_a_batch_of_grouped_products_is_each_of_them():
    rows, bank, sizes = normal(3, 9, D), normal(4, D, M), jnp.array([2, 0, 6, 1])
    run = lambda rows, bank: experts.grouped_matmul(rows, bank, sizes)
    loss = lambda rows, bank: jnp.sin(run(rows, bank)).sum()
    one_by_one = [jax.value_and_grad(loss, (0, 1))(each, bank) for each in rows]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one)
    assert_close(jax.vmap(jax.value_and_grad(loss, (0, 1)), (0, None))(rows, bank), expected)


def test_the_program_does_not_grow_with_tokens_or_experts():
    def size(tokens, num_experts):
        x, choice = normal(tokens, D), random_choice((tokens,), 2, num_experts)
        loss = lambda x, *weights: mlp(x, *weights).sum()
        run = jax.grad(loss, (0, 2, 3, 4, 5, 6))
        jaxpr = jax.make_jaxpr(run)(x, choice.index, choice.weight, *banks(num_experts))
        return counted(jaxpr.jaxpr, lambda _: 1)

    assert size(9, 3) == size(300, 3) == size(300, 11)


def test_errors_say_what_is_taken():
    choice = random_choice((2, 4), 1, 2)
    with pytest.raises(ValueError, match="k: got 3, takes 1 to 2"):
        experts.choose(normal(4, 2), 3, score="softmax", is_renormalised=False)
    for capacity in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"capacity: got {capacity}, takes a positive"):
            experts.limit(choice, 2, capacity)
    with pytest.raises(ValueError, match=r"tokens are \(4,\) but choices \(2, 4\)"):
        experts.expert_mlp(normal(4, D), choice, *banks(2)[:2], RELU)
