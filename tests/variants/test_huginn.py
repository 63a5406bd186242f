"""The sandwich block by hand, its initial scales and sizes, the authors' file read otherwise."""

import functools
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import accounting, config, injection, model
from recursia.architecture import Model
from recursia.convert.reference import huginn as reference
from recursia.depth import recurrent
from recursia.embeddings.table import Table
from recursia.errors import ConfigError
from recursia.evaluate import parity
from recursia.layers.attention import Context
from recursia.layers.rotary import rotate
from tests.helpers import by_hand, slow
from tests.helpers.blocks import published
from tests.helpers.tiny import LENGTH, VOCAB, assert_close, draw, error, is_equal, text

BLOCK = published("huginn", embed_dim=16, num_heads=2, head_dim=8, mlp_dim=24)
GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "huginn.npz"


def tiny(recursions=3, blocks=2, **options):
    """Returns a model as published but for its size."""
    options = {"backprop_depth": 2, "sampler": "fixed"} | options
    return Model(
        recursions * blocks + 3,
        BLOCK,
        recurrent.Recurrent(recursions, **options),
        sharing="cycle",
        prelude=1,
        coda=2,
        vocab_size=VOCAB,
        embed=Table(scale=4.0),
        inject=injection.Injection(input="adapter"),
        loop_norm="last",
    )


def turned(x, positions, base):
    """Returns heads [T N H] turned by their positions, neighbours as complex numbers."""
    pairs = x[..., 0::2] + 1j * x[..., 1::2]
    rates = base ** (-2 * np.arange(pairs.shape[-1]) / x.shape[-1])
    pairs = pairs * np.exp(1j * positions[:, None, None] * rates)
    return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)


def sandwich(w, x, where):
    """Returns one block's output for a row, in float64."""
    normed = lambda x, name: by_hand.norm(x, w["norms"][name], BLOCK.norm_eps)
    heads = lambda name: np.einsum("td,dnh->tnh", normed(x, "attention"), w["attention"][name])
    query, key = (heads(name) + w["attention"][f"{name}_bias"] for name in ("query", "key"))
    query, key = (turned(h, where[0], 50_000.0) for h in (query, key))
    mixed = by_hand.attend(query, key, heads("value"), where, where)
    x = normed(x + np.einsum("tnh,nhd->td", mixed, w["attention"]["out"]), "after_attention")
    gate, up = (normed(x, "mlp") @ w["mlp"][name] for name in ("gate", "up"))
    return normed(x + (gate * by_hand.sigmoid(gate) * up) @ w["mlp"]["down"], "after_mlp")


def whole(params, tokens, state, config):
    """Returns the logits of rows of text from a first state, in float64."""
    table, rows = np.asarray(params["embed"]["table"], np.float64), []
    end = lambda x: by_hand.norm(x, np.asarray(params["final_norm"], np.float64), 1e-6)
    where = np.stack([np.arange(tokens.shape[1]), np.ones(tokens.shape[1])])
    for row, s in zip(np.asarray(tokens), np.asarray(state, np.float64), strict=True):
        walk = lambda x, part, count: functools.reduce(
            lambda x, i: sandwich(by_hand.pick(params[part], i), x, where), range(count), x
        )
        e = walk(config.embed.scale * table[row], "prelude", config.ends["prelude"])
        for _ in range(config.schedule.num_recursions):
            joined = np.concatenate([s, e], -1) @ np.asarray(params["inject"]["adapter"])
            s = walk(joined, "core", config.schedule.num_blocks)
        rows.append(end(walk(end(s), "coda", config.ends["coda"])) @ table.T)
    return np.stack(rows)


@functools.partial(jax.jit, static_argnames=("config", "mode"))
def logits(params, tokens, state, config, mode):
    out = model.apply(params, tokens, config, mode=mode, state=state)
    return model.logits(params, out.hidden, config)


def test_the_block_is_the_formula():
    params, x = draw(tiny())["prelude"], np.random.default_rng(0).normal(size=(1, LENGTH, 16))
    where = np.stack([np.arange(LENGTH) % 7, np.arange(LENGTH) // 7])
    context = Context(*(jnp.asarray(row[None]) for row in where))
    first = jax.tree.map(lambda p: p[0], params)
    ours, made, report = BLOCK.apply(first, jnp.asarray(x, jnp.float32), context)
    assert_close(ours[0], sandwich(by_hand.pick(params, 0), x[0], where))
    assert made.key.shape == made.value.shape == (1, LENGTH, 2, 8) and report == {}


@pytest.mark.parametrize("mode", ["train", "eval", "causal"])
def test_the_model_is_the_formula_in_every_mode(mode):
    config, tokens = tiny(), text()
    params = draw(config)
    state = np.random.default_rng(1).normal(size=(2, LENGTH, 16)).astype(np.float32)
    ours = logits(params, tokens, state, config, mode)
    assert_close(ours, whole(params, tokens, state, config))


def test_a_block_that_reads_its_own_keys_or_memory_is_the_block():
    first = jax.tree.map(lambda p: p[0], draw(tiny())["prelude"])
    x = jax.random.normal(jax.random.key(0), (2, LENGTH, 16))
    place = jnp.broadcast_to(jnp.arange(LENGTH), (2, LENGTH))
    context = Context(place, jnp.zeros_like(place))
    plain, made, _ = BLOCK.apply(first, x, context)
    read, nothing, _ = BLOCK.apply(first, x, context, (made, context))
    assert nothing is None and is_equal(plain, read)
    assert is_equal(plain, BLOCK.apply(first, x, context, memory=x)[0])
    assert error(plain, BLOCK.apply(first, x, context, memory=2 - x)[0]) > 1e-2


def test_neighbours_turn_as_halves_do_in_another_order():
    x = jax.random.normal(jax.random.key(0), (1, 5, 2, 8))
    positions = jnp.array([[0, 3, 1, 400, 2]])
    order = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # halves side by side
    halves = rotate(x, positions, 1e4)
    assert is_equal(rotate(x[..., order], positions, 1e4, "interleaved"), halves[..., order])
    assert error(rotate(x, positions, 1e4, "interleaved"), halves) > 1e-2


@pytest.mark.parametrize("num_steps", [12, 132])
def test_initial_scales_follow_the_effective_depth(num_steps):
    wide = published("huginn", embed_dim=64, num_heads=4, head_dim=16, mlp_dim=128)
    std = math.sqrt(2 / (5 * 64))
    narrow = {("attention", "out"), ("mlp", "up"), ("mlp", "down")}
    # A normal number cut at three deviations varies a little less.
    cut = math.sqrt(1 - 6 * math.exp(-4.5) / math.sqrt(2 * math.pi) / math.erf(3 / math.sqrt(2)))
    for slot, weights in wide.specs(num_steps).items():
        for name, spec in weights.items():
            p = np.asarray(spec.init(jax.random.key(0), spec.shape, jnp.float32))
            if slot == "norms" or name.endswith("bias"):
                assert np.all(p == (slot == "norms")) and not spec.is_decayed
                continue
            want = std / math.sqrt(2 * num_steps) if (slot, name) in narrow else std
            assert abs(p.std() / (want * cut) - 1) < 0.03
            assert 2.7 * want < np.abs(p).max() <= 3 * want


def built(preset):
    return config.load(f"huginn:{preset}", {}).model.sized(65536)


@pytest.mark.parametrize(
    ("preset", "shape", "core"), [("3.5b", (2, 4, 2), 1.5e9), ("study", (1, 4, 1), 6e7)]
)
def test_published_sizes(preset, shape, core):
    ours = built(preset)
    d, f = ours.block.embed_dim, ours.block.feedforward.mlp_dim
    block = 4 * d * d + 3 * d * f + 2 * d + 4 * d
    assert (ours.ends["prelude"], ours.schedule.num_blocks, ours.ends["coda"]) == shape
    count = sum(shape) * block + 2 * d * d + 65536 * d + d
    assert accounting.unique_parameters(ours) == count
    assert abs(shape[1] * block + 2 * d * d - core) < 0.1 * core


def test_the_published_model():
    ours = built("3.5b")
    assert sum(ours.ends.values()) + ours.schedule.num_steps == 132
    assert accounting.unique_parameters(ours) == 3_564_976_800
    assert ours.block.mixer.num_heads * ours.block.mixer.head_dim == ours.block.embed_dim == 5280
    assert ours.block.mixer.head_dim == 96
    assert abs(accounting.mean_depth(ours, 64) - 33) < 1e-3


@pytest.mark.parametrize(("field", "value"), [("num_heads", 0), ("head_dim", 7), ("mlp_dim", -1)])
def test_a_width_that_is_none_is_refused_in_one_line(field, value):
    widths = dict(embed_dim=16, num_heads=2, head_dim=8, mlp_dim=24) | {field: value}
    with pytest.raises(ValueError, match=field) as refusal:
        published("huginn", **widths)
    assert "\n" not in str(refusal.value)


def rewritten(tmp_path, **changes):
    """Returns the path of the authors' file with some entries changed, or left out if None."""
    with np.load(GOLDEN) as file:
        arrays = {**file, **changes}
    np.savez(tmp_path / "file.npz", **{k: v for k, v in arrays.items() if v is not None})
    return str(tmp_path / "file.npz")


@pytest.mark.slow
@pytest.mark.parametrize("split", [slow((0, 4)), (3, 1), slow((4, 0))])
def test_where_the_gradient_starts_changes_no_value(tmp_path, split):
    result = parity.check(rewritten(tmp_path, num_steps=np.array(split)))
    assert result.logits_max_abs < parity.LOGITS and result.loss_max_abs < parity.LOSSES
    assert result.gradient_max_rel > parity.GRADIENTS


@pytest.mark.slow
def test_with_no_trained_recursion_gradients_may_be_missing(tmp_path):
    inner = ("core_block", "prelude", "adapter")
    with np.load(GOLDEN) as file:
        gone = {k: None for k in file if k.startswith("grad/") and any(i in k for i in inner)}
    result = parity.check(rewritten(tmp_path, num_steps=np.array([4, 0]), **gone))
    assert result.logits_max_abs < parity.LOGITS


@pytest.mark.parametrize("name", ["initial_state", "latent_state"])
def test_another_state_is_seen(tmp_path, name):
    with np.load(GOLDEN) as file:
        state = file[name] + np.float32(0.1)
    assert not parity.check(rewritten(tmp_path, **{name: state})).ok


@pytest.mark.slow
def test_a_head_of_its_own_is_read(tmp_path):
    with np.load(GOLDEN) as file:
        table = file["param/transformer.wte.weight"]
        grad = file["grad/transformer.wte.weight"]
    own = {"param/lm_head.weight": table, "grad/lm_head.weight": grad}
    result = parity.check(rewritten(tmp_path, **own))
    assert result.logits_max_abs < parity.LOGITS
    case = reference.case(parity.read(rewritten(tmp_path, **own)))
    assert not case.config.embed.is_tied
    tied = {"alias/lm_head.weight": np.array("transformer.wte.weight")}
    assert parity.check(rewritten(tmp_path, **tied)).ok


@pytest.mark.parametrize(
    ("option", "value"), [("injection_type", "ffn"), ("nonlin_name", "ReLU"), ("qk_bias", False)]
)
def test_an_option_without_counterpart_is_refused(tmp_path, option, value):
    with np.load(GOLDEN) as file:
        theirs = json.loads(str(file["config"])) | {option: value}
    with pytest.raises(ConfigError, match=option) as refusal:
        parity.check(rewritten(tmp_path, config=np.array(json.dumps(theirs))))
    assert "\n" not in str(refusal.value)


def test_a_walk_of_no_recursions_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="num_steps"):
        parity.check(rewritten(tmp_path, num_steps=np.array([0, 0])))
