"""The benchmark of training steps, at the smallest shapes."""

import argparse
import contextlib
import functools
import importlib.util
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from recursia import accounting, budget, sharding
from recursia.errors import ConfigError, UserError
from tests.helpers import exhaustive

ROOT = pathlib.Path(__file__).parent.parent
HAS_TORCH = importlib.util.find_spec("torch") is not None
SMALL = {"width": 32, "seq_len": 24, "batch_size": 2}
PEAK = 1e12


@pytest.fixture
def folder(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def benchmark(folder, monkeypatch):
    import train_step

    one = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", one)
    return train_step


def shaped(name, layers=5, **overrides):
    from rivals import Shape, load

    return load(name, Shape(layers=layers, **SMALL), {"schedule.warmup_steps": "0", **overrides})


def test_rivals_spend_the_flops_they_are_said_to(folder):
    from rivals import is_dense, rivals

    for name in ("mor:tiny", "recursive:tiny", "moeut:tiny"):
        run = shaped(name)
        found = rivals(run, None)
        cost = lambda run: accounting.training_flops(run.model.sized(257), run.train.seq_len)
        assert cost(found["dense"]) == pytest.approx(cost(run), rel=0.01)
        assert is_dense(found["dense"])
        assert ("full_capacity" in found) == (name == "mor:tiny")
        if "full_capacity" in found:
            assert cost(found["full_capacity"]) > cost(run)
    dense = shaped("vanilla:tiny")
    assert not rivals(dense, None)
    assert rivals(run, dense)["dense"].model == dense.model


def test_a_model_takes_the_nearest_depth_that_its_recursions_divide(folder):
    from rivals import Shape, load

    shape = Shape(layers=6, batch_size=1)
    assert load("mor:tiny", shape, {}).model.num_layers == 5  # one, three recursions of one, one
    assert load("vanilla:tiny", shape, {}).model.num_layers == 6


def test_a_cut_keeps_the_proportions_of_a_block(folder):
    from rivals import Shape, load

    run = load("mor:360m", Shape(cut=4, batch_size=2), {})
    block = run.model.block
    assert (block.embed_dim, block.mixer.head_dim, block.feedforward.mlp_dim) == (240, 16, 640)
    assert (block.mixer.num_heads, block.mixer.num_kv_heads) == (15, 5)
    assert (run.train.seq_len, run.train.batch_size, run.model.vocab_size) == (512, 2, 12288)


def test_utilisation_is_flops_per_second_over_the_peak(benchmark):
    run = shaped("vanilla:tiny", layers=1)
    runs = {"preset": run}
    options = argparse.Namespace(torch=False, rounds=2, steps=1)
    row = benchmark.measure("vanilla:tiny", runs, options, PEAK)
    assert list(row["models"]) == list(runs)
    tokens = run.train.batch_size * run.train.seq_len
    for name, model in row["models"].items():
        assert model["tokens_per_second"] * model["seconds_per_step"] == pytest.approx(tokens)
        flops = accounting.training_flops(
            runs[name].model.sized(budget.vocab_size(run)), run.train.seq_len
        )
        per_second = flops * run.train.batch_size / model["seconds_per_step"]
        assert model["utilisation"] == pytest.approx(per_second / PEAK)
        assert model["loss"] == pytest.approx(np.log(257), rel=0.1)
    assert json.loads(json.dumps(row))["preset"] in benchmark.shown(row)


def test_ratios_are_medians_within_rounds_and_the_saving_is_their_share(benchmark):
    times = {"preset": [1.0, 3.0, 8.0], "dense": [2.0, 3.0, 4.0], "full_capacity": [2.0, 4.0, 10.0]}
    flops = {"preset": 3.0, "dense": 3.0, "full_capacity": 4.0}
    over = benchmark.compared(times, flops)
    assert over["dense"]["time_ratio"] == over["dense"]["time_over_flops"] == 1.0
    assert over["full_capacity"]["time_ratio"] == 0.75
    assert over["full_capacity"]["flop_ratio"] == 0.75
    assert over["full_capacity"]["saving_realised"] == 1.0
    assert "saving_realised" not in over["dense"]


def test_what_it_cannot_read_is_one_line(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_step.py", "--presets=mor:360n"])
    assert benchmark.main() == 2
    assert capsys.readouterr().err.count("\n") == 1


TORCH = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed: pip install torch")


@TORCH
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("vanilla:tiny", {"embed.is_tied": "False", "embed.has_head_bias": "True"}),
        exhaustive("vanilla:tiny", {"dtype": "bfloat16"}),  # minutes on some processors
        exhaustive("recursive:tiny", {}),
        ("mor:tiny", {}),
        exhaustive("mor:tiny_kv_share", {}),
    ],
)
def test_torch_gives_the_same_loss_and_gradient_norm(benchmark, name, overrides):
    run = shaped(name, **{f"model.{field}": value for field, value in overrides.items()})
    _, weights, first = benchmark.ours(run)
    with contextlib.ExitStack() as stack:
        processes = benchmark.in_torch(run, weights, first, stack)  # it compares
        for process in processes.values():
            assert process.turn(1) > 0
            assert process.told["gflops"] > 0
        assert processes["torch"].told["library"]
    weights["final_norm"] = 2 * weights["final_norm"]
    with contextlib.ExitStack() as stack, pytest.raises(UserError, match="in ours"):
        benchmark.in_torch(run, weights, first, stack)


def test_arrays_come_back_from_a_file_as_they_were(folder, tmp_path):
    from torch_process import deep, flat

    tree = {"a": {"b": np.arange(3), "c": {"d": np.ones(2)}}, "e": np.zeros(1)}
    np.savez(tmp_path / "tree.npz", **flat(tree))
    with np.load(tmp_path / "tree.npz") as file:
        found = deep(dict(file))
    jax.tree.map(np.testing.assert_array_equal, found, tree)


@pytest.mark.parametrize("name", ["moeut:tiny", "mor:tiny_token", "universal:tiny", "masa:tiny"])
def test_torch_declines_what_it_does_not_have(folder, name):
    from rivals import check_llama, is_llama, rivals

    run = shaped(name)
    with pytest.raises(ConfigError, match="--torch: has Llama blocks"):
        check_llama(run)
    if name == "moeut:tiny":  # whose dense model it has
        assert is_llama(rivals(run, None)["dense"])
