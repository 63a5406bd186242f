"""Distances from a teacher by their formulas, and runs that learn from one."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from recursia import model
from recursia.data import tokenizer
from recursia.errors import DataError, UserError
from recursia.train import distill, loop
from recursia.train.distill import Teacher
from tests.helpers import slow
from tests.helpers.refusals import refused
from tests.helpers.runs import state_of
from tests.helpers.tiny import counted, error, is_equal, tol
from tests.helpers.trainers import (
    COUNT,
    FIXED,
    GATE,
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
    made = trainer(FIXED, distill={"weight": 1.0, "kind": "js"})
    weights = drawn(made)
    value, metrics, grads = graded(made, weights, Teacher(made.model, weights))
    assert abs(value) < 1e-6 and metrics["loss"] > 1
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


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        ({"teacher": "/nowhere"}, ("config.distill.teacher: ", "no config.json")),
        ({"teacher": "{}"}, ("config.distill.teacher: ", "257 tokens", "300")),
        ({"exits": True}, ("distill.exits: ", "'fixed'")),
    ],
    ids=str,
)
def test_what_cannot_be_learnt_is_refused_in_one_line(folder, earlier, tmp_path, section, parts):
    teacher = section.get("teacher", "").format(earlier)
    with refused(UserError, *parts):
        run = short_run(folder, distill=section | {"teacher": teacher}, model={"vocab_size": 300})
        loop.train(run, tmp_path, {})
