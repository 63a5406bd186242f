"""What a checkpoint reads is what `recursia eval` scores, token by token."""

import json

import jax
import numpy as np
import pytest

from recursia import config, scores, settings
from recursia import model as forward
from recursia.evaluate import memories, split, traces
from recursia.report import depth, reading, routing, text
from recursia.train import loop
from recursia.workdir import trained
from tests.helpers import points, runs

pytestmark = pytest.mark.slow
EXPERTS = {"feedforward": "softmax_moe", "num_experts": 4, "top_k": 2, "expert_dim": 8}

MEMORY = {"feedforward": "product_keys", "num_keys": 8, "key_dim": 4, "value_dim": 8}
MEMORY |= {"retrieval_heads": 2, "top_k": 3}


def train(folder, kind, **block):
    runs.write_text(folder)
    values = runs.values(folder, kind, train={"num_steps": 2, "batch_size": 8, "seq_len": 16})
    if block:
        kept = {k: v for k, v in values["model"]["block"].items() if k != "feedforward"}
        values["model"]["block"] = kept | {
            "feedforward": {"kind": block.pop("feedforward"), **block}
        }
    run = config.build(settings.Run, values, "config")
    loop.train(run, folder / "run", {})
    return folder / "run"


def test_a_reading_sums_to_the_score_of_the_text(tmp_path):
    workdir = train(tmp_path, "expert_choice")
    found, loaded = reading.read(workdir), trained.load(workdir)
    count = -(-found.tokens.shape[0] // 8)
    score = scores.score(
        loaded.params,
        loaded.model,
        scores.validation_batches(loaded.run, split.of_run(loaded, workdir), count, loaded.mesh),
        loaded.tokenizer.token_bytes(),
        mode="eval",
        mesh=loaded.mesh,
        rules=loaded.run.mesh.rules,
    )
    assert found.is_token.sum() == score.tokens
    assert found.nats[found.is_token].mean() == pytest.approx(score.nats_per_token, rel=1e-5)
    assert found.depth_used[found.is_token].mean() == pytest.approx(score.mean_depth, rel=1e-6)
    lens = found.lens[:, found.is_token].mean(1)
    assert lens == pytest.approx(score.lens_nats_per_token, rel=1e-5)
    whole = "".join(piece for row in found.pieces for piece in row)
    assert whole.startswith((tmp_path / "validation.txt").read_text()[:100])
    names = {panel.name for panel in depth.panels(found)}
    assert {"scores_2", "by_kind", "by_frequency", "change"} <= names
    taken, known = found.is_taken[1], found.is_token
    for row, rows in zip(found.scores[1], zip(taken, known, strict=True), strict=True):
        goes_on, is_there = rows  # those with the higher scores of a row do
        if (stays := is_there & ~goes_on).any() and goes_on.any():
            assert row[goes_on].min() >= row[stays].max()


def test_experts_get_the_shares_that_they_were_chosen_with(tmp_path, command):
    found = reading.read(workdir := train(tmp_path, "fixed", **EXPERTS))
    (shares,) = found.loads.values()
    assert shares.shape == (2, 4)
    assert np.allclose(shares.sum(1), 1) and shares.std() > 0
    assert not found.has_choice
    assert {panel.name for panel in depth.panels(found)} >= {"load_router"}
    names = [panel.name for panel in routing.panels(found)]
    assert names == ["affinity_router", "consistency_router", "margin_router"]
    typed = ["eval", f"--workdir={workdir}", "--routing", f"--choices={tmp_path / 'routes.npz'}"]
    printed = json.loads(command(*typed, "--json")[0])["routing"]
    assert (printed["mode"], printed["depth"]) == ("eval", 2) and "recursions" not in printed
    (router,) = printed["routers"].values()
    assert (router["experts"], router["top_k"], router["steps"]) == (4, 2, len(router["margin"]))
    assert [row["segment"] for row in router["consistency"]] == [4, 16]
    assert 0 < router["margin"][0][1]
    routes = np.load(tmp_path / "routes.npz")
    used = routes["router/experts"]  # [B T S N k]
    assert used.shape[:2] == routes["tokens"].shape == routes["depth_used"].shape
    assert printed["tokens"] == (routes["depth_used"] > 0).sum()
    count = np.bincount(used[:, :, -1][used[:, :, -1] >= 0], minlength=4)
    assert np.allclose(count / count.sum(), shares[-1])


def test_a_memory_has_its_panels_and_its_line(tmp_path, command):
    found = reading.read(workdir := train(tmp_path, "fixed", **MEMORY))
    names = [panel.name for panel in routing.panels(found)]
    assert names == [f"{what}_memory_keys" for what in ("used", "overlap", "consistency")]
    typed = ["eval", f"--workdir={workdir}", "--routing", f"--choices={tmp_path / 'reads.npz'}"]
    (line,) = [line for line in command(*typed)[0].splitlines() if "2 x 3 of 64" in line]
    assert line.split()[0] == "memory_keys"
    reads = np.load(tmp_path / "reads.npz")
    values, shares = reads["memory_keys/values"], reads["memory_keys/shares"]  # [B T S N K]
    assert values.shape == shares.shape == (*reads["tokens"].shape, 2, 2, 3)
    assert np.allclose(shares.sum(-1), (reads["depth_used"] > 0)[..., None, None])


@pytest.mark.parametrize("kind", points.DEPTHS)
def test_every_depth_policy_has_its_panels(kind):
    model = points.point("pre_norm", kind)
    draw = np.random.default_rng(0)
    ids = draw.integers(0, model.vocab_size, (2, 13)).astype(np.int32)
    ones = np.ones((2, 12), np.int32)
    batch = {"tokens": ids[:, :-1], "targets": ids[:, 1:], "segment_ids": ones}
    batch |= {"positions": np.cumsum(ones, 1) - 1, "weights": ones.astype(np.float32)}
    params = forward.init(model, jax.random.key(0))
    found = jax.device_get(jax.jit(reading._read, static_argnums=0)(model, params, batch))
    steps, by_name = model.schedule.steps, {"traces": traces, "memories": memories}
    made = reading.Reading(
        step=0,
        num_recursions=model.schedule.num_recursions,
        pieces=[["a"] * 12] * 2,
        kinds=ones,
        counts=ids[:, :-1] + 1,
        is_of_training=True,
        tokens=ids[:, :-1],
        is_token=ones > 0,
        **{**found, **{name: of.joined([found[name]], steps) for name, of in by_name.items()}},
    )
    used = made.depth_used
    assert used.min() >= 1 and used.max() <= made.num_recursions
    assert np.isfinite(made.nats).all()
    names = {panel.name for panel in depth.panels(made)}
    assert ("by_kind" in names) is made.has_choice
    assert text.panel(made).html.count("<span") >= 24
