"""Distances from a teacher by their formulas, and runs that learn from one."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from recursia import model, params, sharding
from recursia.convert import calibration, export
from recursia.data import tokenizer
from recursia.errors import CheckpointError, DataError, UserError
from recursia.traced_flops import count_flops
from recursia.train import distill, loop
from recursia.train import earlier as earlier_run
from recursia.train.distill import Teacher
from recursia.workdir import trained
from tests.helpers import slow
from tests.helpers.refusals import refused
from tests.helpers.runs import saved, state_of
from tests.helpers.tiny import assert_close, counted, draw, error, is_equal, text, tiny, tol
from tests.helpers.trainers import (
    COUNT,
    FIXED,
    GATE,
    ROWS,
    batch,
    drawn,
    graded,
    leaves,
    mean,
    nats_of,
    short_run,
    states_of,
    trainer,
)

B, T, D, V = 2, 12, 16, 40
KINDS = ("forward_kl", "reverse_kl", "js", "tvd")


def problem():
    keys = jax.random.split(jax.random.key(0), 6)
    head = {"matrix": 0.3 * jax.random.normal(keys[0], (V, D))}
    theirs = {"matrix": 0.5 * jax.random.normal(keys[1], (V, 2 * D)), "bias": jnp.arange(V) / V}
    taught = jax.random.normal(keys[2], (B, T, 2 * D)), theirs
    hidden = jax.random.normal(keys[3], (B, T, D))
    return hidden, head, taught, jax.random.uniform(keys[4], (B, T)).at[0, 3].set(0.0)


def by_definition(kind, q, p):
    """Returns the distance of probabilities."""
    kl = lambda p, q: (p * np.log(p / q)).sum(-1)
    m = (p + q) / 2
    return {
        "forward_kl": -(p * np.log(q)).sum(-1),
        "reverse_kl": kl(q, p),
        "js": 0.5 * kl(p, m) + 0.5 * kl(q, m),
        "tvd": 0.5 * np.abs(p - q).sum(-1),
    }[kind]


def probabilities(hidden, head):
    logits = np.asarray(hidden, np.float64) @ np.asarray(head["matrix"], np.float64).T
    odds = np.exp(logits + np.asarray(head.get("bias", 0.0), np.float64))
    return odds / odds.sum(-1, keepdims=True)


@pytest.mark.parametrize("chunk", [5, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_each_token_has_its_distance_by_definition(kind, chunk):
    hidden, head, taught, weights = problem()
    total, each = distill.distance(kind, hidden, head, taught, weights, chunk)
    want = by_definition(kind, probabilities(hidden, head), probabilities(*taught))
    assert error(each, want) < tol(jnp.float32, V)
    assert abs(total - (weights * want).sum()) < 1e-4


def test_a_temperature_divides_both_logits_and_its_square_multiplies_the_distance():
    hidden, head, (others, theirs), weights = problem()
    cold = others / 2, {**theirs, "bias": theirs["bias"] / 2}
    want = 4 * by_definition("js", probabilities(hidden / 2, head), probabilities(*cold))
    _, each = distill.distance("js", hidden, head, (others, theirs), weights, 5, 2.0)
    assert error(each, want) < tol(jnp.float32, V)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_definition(kind):
    hidden, head, taught, weights = problem()

    def plain(hidden, head, weights):
        p = jax.nn.softmax(taught[0] @ taught[1]["matrix"].T + taught[1]["bias"])
        q = jax.nn.softmax(hidden @ head["matrix"].T)
        m = (p + q) / 2
        each = {
            "forward_kl": -p * jnp.log(q),
            "reverse_kl": q * jnp.log(q / p),
            "js": (p * jnp.log(p / m) + q * jnp.log(q / m)) / 2,
            "tvd": jnp.abs(p - q) / 2,
        }[kind]
        return 3 * (weights * each.sum(-1)).sum()

    ours = lambda hidden, head, weights: (
        3 * distill.distance(kind, hidden, head, taught, weights, 5)[0]
    )
    grad = lambda f: jax.jit(jax.grad(f, argnums=(0, 1, 2)))(hidden, head, weights)
    assert error(grad(ours), grad(plain)) < tol(jnp.float32, B * T * V)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_predictions_are_at_the_least_distance(kind):
    hidden, head, _, weights = problem()
    run = lambda hidden: distill.distance(kind, hidden, head, (other, head), weights, 4)
    other = hidden
    (_, each), slope = jax.value_and_grad(run, has_aux=True)(hidden)
    q = probabilities(hidden, head)
    entropy = -(q * np.log(q)).sum(-1)
    assert np.allclose(each, entropy if kind == "forward_kl" else 0.0, atol=1e-5)
    assert np.abs(slope).max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_the_whole_batch_never_exist(kind):
    hidden, head, taught, weights = problem()

    def whole(chunk):
        run = lambda h, w: distill.distance(kind, h, w, taught, weights, chunk)[0]
        jaxpr = jax.make_jaxpr(jax.value_and_grad(run, argnums=(0, 1)))(hidden, head)
        return counted(jaxpr.jaxpr, lambda e: sum(x.aval.size >= B * T * V for x in e.outvars))

    assert whole(12) > 0
    assert whole(4) == 0


def logs(made, weights, mode="train"):
    """Returns log probabilities of each state that the loss reads [R B T V], on whole logits."""
    rows = batch()
    where = {name: rows[name] for name in ("positions", "segment_ids")}
    out = model.apply(weights, rows["tokens"], made.model, mode=mode, **where)
    return jax.nn.log_softmax(model.logits(weights, states_of(out), made.model))


@functools.cache
def other_teacher():
    """Returns a model of another depth and other weights, and what it predicts."""
    made = trainer({"kind": "fixed", "num_recursions": 2})
    weights = drawn(made, seed=9)
    predicted = jax.jit(lambda w: jnp.exp(logs(made, w, "eval")[-1]))(weights)
    return Teacher(made.model, weights), predicted


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.25, slow(1.0)])
def test_a_teacher_takes_its_part_of_the_loss(weight):
    teacher, p = other_teacher()
    made = trainer(FIXED, distill={"weight": weight})

    def formula(w):
        log_q = logs(made, w)[-1]
        taught = -(p * log_q).sum(-1)
        nats = -jnp.take_along_axis(log_q, batch()["targets"][..., None], -1)[..., 0]
        return mean((1 - weight) * nats + weight * taught), mean(nats)

    weights = drawn(made)
    (want, own), want_grads = jax.jit(jax.value_and_grad(formula, has_aux=True))(weights)
    value, metrics, grads = graded(made, weights, teacher)
    assert abs(value - want) < 1e-5 * want
    assert error(grads, want_grads) < tol(jnp.float32, 2048)
    assert abs(metrics["loss"] - own) < 1e-5


def test_states_of_layers_take_their_part_of_the_loss():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(2, 2, B, T, D)).astype(np.float32)
    weights = rng.uniform(size=(B, T)).astype(np.float32)
    each = ((ours - theirs) ** 2).sum(-1) / (theirs**2).sum(-1)
    found = distill.state_distance(*map(jnp.asarray, (ours, theirs, weights)))
    np.testing.assert_allclose(found, (weights * each.mean(0)).sum(), rtol=1e-5)


def states(made, weights, mode):
    rows = batch()
    where = {name: rows[name] for name in ("positions", "segment_ids")}
    return model.apply(
        weights, rows["tokens"], made.model, mode=mode, keeps_states=True, **where
    ).states


@pytest.mark.slow
def test_the_last_layers_learn_from_those_that_are_named():
    own, _ = other_teacher()
    teacher = Teacher(own.model, own.params, (0, 3))
    how = {"weight": 0.0, "teacher": "a", "layers": 2, "teacher_layers": (0, 3)}
    made = trainer(FIXED, distill=how | {"layer_weight": 0.5})
    other = trainer({"kind": "fixed", "num_recursions": 2})

    def formula(w):
        x = states(made, w, "train")[-2:]
        t = states(other, own.params, "eval")[jnp.array([0, 3])]
        apart = ((x - t) ** 2).sum(-1) / (t**2).sum(-1)
        return mean(nats_of(made, w)[0][-1]) + 0.5 * mean(apart.mean(0))

    weights = drawn(made)
    want, want_grads = jax.jit(jax.value_and_grad(formula))(weights)
    value, metrics, grads = graded(made, weights, teacher)
    assert abs(value - want) < 1e-5 * want
    assert abs(metrics["loss"] + metrics["loss_layers"] - want) < 1e-5 * want
    assert error(grads, want_grads) < tol(jnp.float32, 2048)


@pytest.mark.parametrize("sharing_", ["sequence", "middle_cycle"])
def test_states_after_layers_are_those_of_the_model_unrolled(sharing_):
    config = tiny(sharing_=sharing_, recursions=2, blocks=2)
    params = draw(config)
    flat, weights = calibration.dense(params, config)
    by_layer = calibration.by_layer(flat)
    want = jax.jit(lambda w: model.apply(w, text(), by_layer, mode="eval").aux.states)(weights)
    run = lambda w, **how: model.apply(w, text(), config, mode="train", **how)
    plain, keeping = jax.jit(run), jax.jit(functools.partial(run, keeps_states=True))
    found = keeping(params)
    assert_close(found.states, want)
    assert is_equal(found.hidden, plain(params).hidden)


@pytest.mark.parametrize("weight", [0.0, slow(0.5)])
def test_a_teacher_adds_the_flops_that_are_said(weight):
    own, _ = other_teacher()
    layers = {"distill": {"weight": weight, "teacher": "a", "layers": 1}}
    made = trainer(FIXED, teacher=Teacher(own.model, own.params, (3,)), **layers)
    alone = dataclasses.replace(made, teacher=None)
    traced = [count_flops(each.trace().jaxpr) for each in (made, alone)]
    said = [each.flops(each.model) * ROWS for each in (made, alone)]
    assert traced[0] - traced[1] == said[0] - said[1]


@pytest.mark.slow
def test_a_teacher_that_is_sharded_teaches_the_same():
    own, _ = other_teacher()
    teacher = Teacher(own.model, own.params, (3,))
    how = {"distill": {"teacher": "a", "layers": 1}, "mesh": {"data": 1, "fsdp": -1}}
    found = []
    for devices in (1, 2):
        made = trainer(FIXED, teacher=teacher, devices=devices, **how)
        put = jax.tree.map(jax.device_put, teacher.params, made.teacher_shardings)
        made = dataclasses.replace(made, teacher=dataclasses.replace(teacher, params=put))
        parts = [p.addressable_shards[0].data.size for p in leaves(put)]
        assert devices == 1 or sum(parts) < 0.6 * sum(p.size for p in leaves(put))
        state, metrics = made.step_function(0)(made.init(), made.put(batch()))
        found.append((metrics, optax.tree.norm(state.params)))
    (one, norm), (two, wanted) = jax.device_get(found)
    assert abs(norm - wanted) < 1e-5 * norm
    assert all(abs(one[name] - two[name]) < 1e-5 for name in ("loss", "loss_layers"))


@pytest.mark.slow
@pytest.mark.parametrize("depth", [{**FIXED, "exit_loss": "weighted"}, GATE], ids=str)
def test_the_last_state_teaches_the_earlier_ones_and_learns_from_the_teacher(depth):
    teacher, p = other_teacher()
    made = trainer(depth, distill={"weight": 0.25, "exits": True})

    def formula(w):
        (nats, aux), log_q = nats_of(made, w), logs(made, w)
        own = jax.lax.stop_gradient(jnp.exp(log_q[-1]))
        taught = -(jnp.stack([own] * (COUNT - 1) + [p]) * log_q).sum(-1)
        each = (aux.exit_weights * (0.75 * nats + 0.25 * taught)).sum(0)
        return mean(each - (0.1 * aux.exits["entropy"] if depth is GATE else 0.0))

    weights = drawn(made)
    want, want_grads = jax.jit(jax.value_and_grad(formula))(weights)
    value, _, grads = graded(made, weights, teacher)
    assert abs(value - want) < 1e-5 * want
    assert error(grads, want_grads) < tol(jnp.float32, 2048)


def test_a_pupil_equal_to_its_teacher_has_nothing_to_learn():
    how = {"weight": 1.0, "kind": "js", "teacher": "a", "layers": 2}
    made = trainer(FIXED, distill=how)
    weights = drawn(made)
    value, metrics, grads = graded(made, weights, Teacher(made.model, weights, (4, 5)))
    assert abs(value) < 1e-6 and metrics["loss"] > 1 and metrics["loss_layers"] < 1e-9
    assert all(np.abs(g).max() < 1e-6 for g in leaves(grads))


@pytest.mark.parametrize("field", ["distill.teacher", "train.init_from"])
def test_an_earlier_run_of_as_many_other_words_is_refused(folder, earlier, tmp_path, field):
    other = tokenizer.from_spec("bpe:257", lambda: iter(["word"]))
    directory = shutil.copytree(earlier, tmp_path / "other") / "tokenizer"
    other.save(str(directory))
    section, name = field.split(".")
    run = short_run(folder, **{section: {name: str(tmp_path / "other")}})
    with refused(DataError, f"config.{field}: ", "bpe of 257 tokens", "byte of 257 tokens"):
        loop.train(run, tmp_path / "pupil", {})


@pytest.mark.slow
def test_a_run_learns_from_a_run_and_saves_itself_alone(folder, earlier, tmp_path):
    states = []
    for teacher in ("", str(earlier)):
        workdir = tmp_path / f"taught-{bool(teacher)}"
        half = {"dtype": "bfloat16"}
        loop.train(short_run(folder, model=half, distill={"teacher": teacher}), workdir, {})
        assert json.loads((workdir / "config.json").read_text())["distill"]["teacher"] == teacher
        states.append(state_of(workdir, 1))
    alone, taught = states
    assert alone.keys() == taught.keys() and not is_equal(alone, taught)


@pytest.mark.slow
def test_a_run_that_learns_resumes_to_the_bit(folder, earlier, tmp_path, compiled_once):
    how = {"teacher": str(earlier), "layers": 2}
    run = short_run(
        folder, distill=how, train={"num_steps": 2}, checkpoint={"every_steps": 1, "keep": 2}
    )
    loop.train(run, tmp_path / "run", {})
    whole = state_of(tmp_path / "run", 2)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    loop.train(run, tmp_path / "run", {})
    assert is_equal(state_of(tmp_path / "run", 2), whole)


@pytest.mark.slow
def test_a_teacher_that_has_changed_is_refused_and_another_is_taken(
    folder, earlier, tmp_path, compiled_once
):
    teacher, moved = shutil.copytree(earlier, tmp_path / "a"), tmp_path / "b"
    of = lambda place, steps: short_run(
        folder, distill={"teacher": str(place)}, train={"num_steps": steps}
    )
    loop.train(of(teacher, 1), tmp_path / "run", {})
    shutil.copytree(teacher, moved)
    loop.train(short_run(folder, train={"num_steps": max(saved(teacher)) + 1}), teacher, {})
    with refused(CheckpointError, str(teacher), "other parameters", "another workdir"):
        loop.train(of(teacher, 2), tmp_path / "run", {})
    loop.train(of(moved, 2), tmp_path / "run", {})
    assert max(saved(tmp_path / "run")) == 2


def test_a_fingerprint_tells_bits_places_and_parameters_apart_and_no_sharding():
    tree = {"a": jax.random.normal(jax.random.key(0), (8, 4)), "b": jnp.zeros((8, 4))}
    fingerprint = jax.jit(params.fingerprint)
    whole = int(fingerprint(tree))
    where = NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec("data"))
    assert int(fingerprint(jax.device_put(tree, where))) == whole
    changed = (
        {**tree, "b": tree["b"].at[7, 3].set(-0.0)},
        {"a": tree["a"][::-1], "b": tree["b"]},
        {"a": tree["b"], "b": tree["a"]},
        {"a": tree["a"].at[0, 0].set(jnp.nextafter(tree["a"][0, 0], 9.0)), "b": tree["b"]},
    )
    assert len({whole, *(int(fingerprint(each)) for each in changed)}) == 5


def test_a_checkpoint_from_elsewhere_teaches_as_the_run_it_was_made_of(folder, earlier, tmp_path):
    theirs = trained.load(earlier)
    export.export(theirs.model, theirs.params, theirs.tokenizer, "recursive", 64, tmp_path)
    run = short_run(folder, distill={"teacher": str(tmp_path), "layers": 1})
    words = trained.load(tmp_path).tokenizer  # bytes are written as merges
    mesh = sharding.make_mesh(run.mesh, jax.devices()[:1])
    found = earlier_run.teacher(run, 257, words, mesh)
    assert found.layers == (5,) and found.model == theirs.model
    assert is_equal(found.params, theirs.params)
    for field, value, parts in (
        ("teacher_layers", (6,), ("teacher_layers: ", "0 to 5", "(6,)")),
        ("teacher", str(earlier / "nothing"), ("config.distill.teacher: ", "no config.json")),
    ):
        how = dataclasses.replace(run.distill, **{field: value})
        with refused(UserError, *parts):
            other = dataclasses.replace(run, distill=how)
            earlier_run.teacher(other, 257, words, mesh)
    wide = dataclasses.replace(run.model.block, embed_dim=2 * run.model.block.embed_dim)
    other = dataclasses.replace(run, model=dataclasses.replace(run.model, block=wide))
    with refused(UserError, "config.distill.layers: ", str(wide.embed_dim)):
        earlier_run.teacher(other, 257, words, mesh)


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        ({"teacher": "/nowhere"}, ("config.distill.teacher: ", "no config.json")),
        ({"teacher": "{}"}, ("config.distill.teacher: ", "257 tokens", "300")),
        ({"exits": True}, ("distill.exits: ", "'fixed'")),
        ({"layers": 2}, ("distill", "layers: 2", "teacher")),
        ({"teacher": "a", "layers": 7}, ("distill.layers: ", "7", "6")),
        ({"teacher": "a", "layers": 2, "teacher_layers": (1,)}, ("teacher_layers: ", "1", "2")),
    ],
    ids=str,
)
def test_what_cannot_be_learnt_is_refused_in_one_line(folder, earlier, tmp_path, section, parts):
    teacher = section.get("teacher", "").format(earlier)
    with refused(UserError, *parts):
        run = short_run(folder, distill=section | {"teacher": teacher}, model={"vocab_size": 300})
        loop.train(run, tmp_path, {})
