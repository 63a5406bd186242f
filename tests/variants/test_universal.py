"""The Universal Transformer's block, its coordinates, and the looped model without them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, config, injection, kv, model
from recursia.architecture import Model
from recursia.depth import fixed
from recursia.layers.attention import Context, KeysValues
from recursia.layers.sinusoids import sinusoids
from recursia.params import at
from tests.helpers import tiny as llamas
from tests.helpers import universal_by_hand as by_hand
from tests.helpers.blocks import altered, arranged, published
from tests.helpers.by_hand import pick
from tests.helpers.tiny import VOCAB, assert_close, draw, error, forward, is_equal, text
from tests.helpers.universal_by_hand import BLOCK, FORMS

GROUPED = altered(BLOCK, num_kv_heads=2, head_dim=6)


def tiny(form="released", depth=None, layers=4, sharing="cycle", kv_sharing="own", **options):
    block, told = FORMS[form]
    return Model(
        layers,
        block,
        depth or fixed.Fixed(4),
        sharing=sharing,
        kv=kv.Plan(kv_sharing),
        inject=told,
        **options,
    ).sized(VOCAB)


def some_rows(seed=0):
    """Returns drawn weights of one block, one row of states, and where they stand: two texts."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1, 12, BLOCK.embed_dim)).astype(np.float32)
    where = np.array([[0, 1, 2, 5, 6, 7, 0, 1, 2, 3, 4, 9], [1] * 6 + [2] * 6])
    return x, where, Context(jnp.asarray(where[:1]), jnp.asarray(where[1:]))


def one_block(block, seed=0):
    of = dataclasses.replace(tiny(), block=block)
    return at(draw(of, seed)["core"], 0)


@pytest.mark.parametrize("block", [BLOCK, GROUPED], ids=["all heads", "grouped"])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("reads", ["own", "source", "memory"])
def test_the_block_is_its_formula(block, norm, reads):
    block = arranged(block, f"{norm}_norm")
    weights, (x, where, context) = one_block(block), some_rows()
    other = some_rows(1)[0]
    source = by_source = memory = None
    if reads == "source":
        by_source = by_hand.block(pick(weights, ...), other[0], where, block)[1]
        key, value = (jnp.asarray(leaf[None], jnp.float32) for leaf in by_source[:2])
        source = KeysValues(key, value), context
    elif reads == "memory":
        memory = other
    y, made, report = block.apply(weights, jnp.asarray(x), context, source, memory)
    theirs = None if memory is None else memory[0]
    by_y, by_made = by_hand.block(pick(weights, ...), x[0], where, block, by_source, theirs)
    assert_close(y[0], by_y)
    assert report == {}
    assert (made is None) == (reads == "source")
    if made is not None:
        assert_close((made.key[0], made.value[0]), by_made[:2])


def test_a_post_norm_block_leaves_normalised_states_and_a_pre_norm_one_does_not():
    x, _, context = some_rows()
    spread = {}
    for norm in ("pre", "post"):
        block = arranged(BLOCK, f"{norm}_norm")
        weights = one_block(block)
        plain = {"scale": jnp.ones(16), "bias": jnp.zeros(16)}
        weights = {**weights, "norms": {"attention": plain, "mlp": plain}}
        y = block.apply(weights, 7 * jnp.asarray(x), context)[0]
        spread[norm] = np.asarray(y).std(-1)
    np.testing.assert_allclose(spread["post"], 1, atol=1e-4)
    assert spread["pre"].min() > 2


@pytest.mark.parametrize("layout", ["interleaved", "halves"])
def test_coordinates_are_their_formula(layout):
    index = np.array([0, 1, 7, 300])
    rows = np.stack([by_hand.wave(i, 16, layout) for i in index])
    assert_close(sinusoids(jnp.asarray(index), 16, layout), rows, n=4096)  # angles to 300


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("blocks", "kv_sharing"), [(1, "own"), (2, "first_recursion")])
def test_fixed_depth_is_a_tied_stack_with_coordinates(form, blocks, kv_sharing):
    of = tiny(form, layers=4 * blocks, kv_sharing=kv_sharing)
    params = draw(of)
    by_logits, rows = by_hand.forward(params, text(), of)
    for mode in ("train", "eval", "causal"):
        logits, aux = forward(params, text(), of, mode)
        assert_close(logits, by_logits, n=256)
    assert_close(aux.states.swapaxes(0, 1), np.stack([row["states"] for row in rows]), n=256)


def test_every_learned_step_vector_is_read_at_its_own_step():
    of = tiny()
    params = draw(of)
    steps = params["inject"]["step"]
    swapped = {**params, "inject": {"step": steps[jnp.array([0, 2, 1, 3])]}}
    states = [forward(p, text(), of)[1].states for p in (params, swapped)]
    assert is_equal(states[0][0], states[1][0])
    assert all(error(a, b) > 1e-3 for a, b in zip(states[0][1:], states[1][1:], strict=True))


def test_step_vectors_bound_the_depth_and_sinusoids_do_not():
    learned, wave = tiny(), tiny("paper")
    with pytest.raises(ValueError, match="learned vectors for 4 recursions only"):
        model.at_depth(learned, draw(learned), 5)
    deep, params = model.at_depth(wave, draw(wave), 6)
    assert_close(forward(params, text(), deep)[0], by_hand.forward(params, text(), deep)[0], n=256)
    shallow, params = model.at_depth(learned, draw(learned), 2)
    states = forward(draw(learned), text(), learned)[1].states
    assert_close(forward(params, text(), shallow)[1].states, states[:2])


@pytest.mark.parametrize(
    ("changes", "why"),
    [({"num_kv_heads": 3}, "num_heads: 4 query heads do not divide"), ({"mlp_dim": 0}, "mlp_dim")],
)
def test_widths_that_cannot_be_are_refused_in_one_line(changes, why):
    with pytest.raises(ValueError, match=why) as refusal:
        altered(BLOCK, **changes)
    assert "\n" not in str(refusal.value)


def test_what_writes_to_the_stream_starts_smaller_the_deeper_a_pre_norm_model():
    wide = published("universal", embed_dim=64, num_heads=4, head_dim=16, mlp_dim=256)

    def spread(norm, slot, name):
        init = dataclasses.replace(wide.mixer.init, by_depth=norm == "pre")
        spec = altered(wide, init=init).specs(8)[slot][name]
        return float(spec.init(jax.random.key(0), spec.shape, jnp.float32).std())

    for slot, name, inputs in (("attention", "out", 64), ("mlp", "down", 256)):
        np.testing.assert_allclose(spread("pre", slot, name), (16 * inputs) ** -0.5, rtol=0.05)
        np.testing.assert_allclose(spread("post", slot, name), inputs**-0.5, rtol=0.05)
    for norm in ("pre", "post"):
        np.testing.assert_allclose(spread(norm, "mlp", "up"), 64**-0.5, rtol=0.05)
        np.testing.assert_allclose(spread(norm, "attention", "query"), 64**-0.5, rtol=0.05)


def formula(vocab, width, hidden, steps, halts):
    """Returns the published count: table, attention, transition, biases, norms, steps, halting."""
    weights = vocab * width + 4 * width**2 + 2 * width * hidden
    biases, norms = hidden + width, 3 * 2 * width
    return weights + biases + norms + steps * width + (width + 1 if halts else 0)


@pytest.mark.parametrize(
    ("preset", "shape"),
    {
        "tiny": (64, 256, 6, True),
        "teeny": (128, 128, 10, False),
        "t2t_tiny": (128, 512, 8, False),
        "small": (512, 2048, 6, False),
        "base": (1024, 4096, 6, False),
        "big": (2048, 8192, 6, False),
        "adaptive_small": (512, 2048, 12, True),
        "adaptive_base": (1024, 4096, 12, True),
        "adaptive_big": (2048, 8192, 12, True),
    }.items(),
)
def test_presets_have_the_published_parameters(preset, shape):
    chosen = config.load(f"universal:{preset}", {}).model
    vocab = chosen.vocab_size or 257
    assert accounting.unique_parameters(chosen.sized(vocab)) == formula(vocab, *shape)
    deeper = dataclasses.replace(chosen, inject=injection.Injection(position="halves"))
    twice = dataclasses.replace(
        deeper,
        num_layers=2 * chosen.num_layers,
        depth=dataclasses.replace(chosen.depth, num_recursions=2 * chosen.num_layers),
    )
    counts = [accounting.unique_parameters(each.sized(vocab)) for each in (deeper, twice)]
    assert counts[0] == counts[1]  # steps cost nothing but their vectors


def test_the_papers_form_is_a_few_overrides_away():
    wanted = {"block.kind": "post_norm"}
    wanted |= {f"inject.{name}": "interleaved" for name in ("position", "step")}
    paper = config.load("universal:tiny", wanted).model.sized(257)
    assert "final_norm" not in model.specs(paper) and model.specs(paper)["inject"] == {}


@pytest.mark.parametrize("injected", ["none", "add"])
def test_a_looped_model_is_the_plain_loop(injected):
    of = llamas.tiny(recursions=3, blocks=2)
    of = dataclasses.replace(of, inject=injection.Injection(input=injected))
    params, tokens = draw(of), text()
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    context = Context(places, jnp.ones_like(tokens))
    embedded = x = params["embed"]["table"][tokens]
    for _ in range(3):
        x = x + embedded if injected == "add" else x
        for k in range(2):
            x, *_ = of.block.apply(at(params["core"], k), x, context)
    by_loop = model.logits(params, model.normalise(params, x, of), of)
    assert_close(forward(params, tokens, of)[0], by_loop, n=256)


@pytest.mark.parametrize("preset", ["demo", "tiny", "135m", "360m", "730m", "1.7b"])
def test_looped_presets_store_a_part_of_the_vanilla_stack(preset):
    looped, vanilla = (config.load(f"{name}:{preset}", {}).model for name in ("looped", "vanilla"))
    loops = looped.depth.num_recursions
    assert loops == (4 if looped.num_layers % 4 == 0 else 2)
    grids = looped.sized(1000), vanilla.sized(1000)
    counts = [accounting.unique_parameters(each) for each in grids]
    outer = 1001 * looped.block.embed_dim  # table and final norm
    assert (counts[1] - outer) == loops * (counts[0] - outer)
    assert grids[0].schedule.num_steps == grids[1].schedule.num_steps
    cache = [accounting.cache_bytes_per_token(each, 64) for each in grids]
    assert cache[0] == cache[1]  # an entry for each block and loop
