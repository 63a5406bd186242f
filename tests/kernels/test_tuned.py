"""Sizes of kernels come from the table of the device that a program is lowered for."""

import dataclasses
import importlib
import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from recursia import topology
from recursia.kernels import tuned
from recursia.kernels.dispatch import Implementation, Op
from tests.helpers.benchmarks import benchmark
from tests.helpers.kernels import compile_for
from tests.helpers.refusals import refused


@dataclasses.dataclass(frozen=True)
class Config:
    rows: int
    columns: int

    def __post_init__(self):
        if self.rows % 8:
            raise ValueError(f"rows: got {self.rows}, takes a multiple of 8")


SHAPES = "float32[1024,8]"


@pytest.fixture
def used(monkeypatch, tmp_path):
    """Returns the sizes with which an op was lowered, and the op; tables are in `tmp_path`."""
    found = []

    def run(x, *, config=None):
        found.append(config)
        return x

    config = lambda x: Config(8, len(x))
    kernels = [Implementation("ours", platform, run, config) for platform in ("tpu", "cpu")]
    monkeypatch.setattr(tuned, "FOLDER", tmp_path)
    return found, Op("doubled", lambda x: x, tuple(kernels))


def given(path, entries):
    path.write_text(json.dumps({"doubled": {"ours": entries}}))
    tuned.table.cache_clear()


def test_an_entry_is_of_a_device_and_of_lengths_up_to_a_power_of_two(used, tmp_path):
    found, op = used
    entry = {"config": {"rows": 16, "columns": 3}, "seconds": 1.0}
    given(tmp_path / "tpu_v5_lite.json", {SHAPES: entry})
    for length, machine, config in (
        (1000, "v5e:2x2", Config(16, 3)),
        (1024, "v5e:2x2", Config(16, 3)),
        (1025, "v5e:2x2", Config(8, 1025)),
        (1000, "v6e:2x2", Config(8, 1000)),
    ):
        compile_for(machine, op, jax.ShapeDtypeStruct((length, 8), jnp.float32))
        assert found.pop() == config
    mesh = jax.sharding.Mesh(topology.devices("v5e:2x2"), "x")  # each shard has 1,024 rows
    for each in (mesh, mesh.abstract_mesh):
        split = jax.shard_map(op, mesh=each, in_specs=P("x"), out_specs=P("x"), check_vma=False)
        traced = jax.jit(split).trace(jax.ShapeDtypeStruct((4096, 8), jnp.float32))
        traced.lower(lowering_platforms=("tpu",))
        assert found.pop() == Config(16, 3)


NO_TABLE = "no table", "delete or mend"
ENTRY = "doubled ours", SHAPES


@pytest.mark.parametrize(
    "content, words",
    [
        ({"config": {"rows": 16}}, (*ENTRY, "rows, columns")),
        ({"config": {"rows": 16, "columns": 3, "warps": 4}}, (*ENTRY, "warps", "rows, columns")),
        ({"config": {"rows": 16, "columns": 0}}, (*ENTRY, "columns", "0", "positive")),
        ({"config": {"rows": 16, "columns": 1.5}}, (*ENTRY, "columns", "1.5", "positive")),
        ({"config": {"rows": 12, "columns": 1}}, (*ENTRY, "rows", "12", "multiple of 8")),
        *((text, NO_TABLE) for text in ("{", "[]", '{"doubled": 1}')),
        ('{"doubled": {"ours": {"": 1}}}', NO_TABLE),
    ],
)
def test_what_is_no_table_or_no_config_is_named(used, content, words):
    if isinstance(content, dict):
        given(tuned.path("cpu"), {SHAPES: content})
    else:
        tuned.path("cpu").write_text(content)
        tuned.table.cache_clear()
    with refused(ValueError, "cpu.json", *words):
        jax.jit(used[1])(jnp.zeros((1024, 8)))


def test_tuning_writes_the_fastest_sizes_and_what_was_measured(used, tmp_path):
    found, op = used
    tuning = benchmark("tuning")

    def timed():
        jax.jit(op)(jnp.zeros((4, 8))).block_until_ready()
        return 1 + abs(found[-1].rows - 32) + abs(found[-1].columns - 2)

    tuning.write("cpu", tuning.tune(lambda: len(jax.jit(op)(jnp.zeros((4, 8))))))
    assert not list(tmp_path.iterdir())  # for nothing was faster
    tuning.write("cpu", tuning.tune(timed), commit="c")
    (entry,) = json.loads(tuned.path("cpu").read_text())["doubled"]["ours"].values()
    config = {"rows": 32, "columns": 2}
    assert entry == {"config": config, "seconds": 1, "before": 27, "commit": "c"}
    jax.clear_caches()
    jax.jit(op)(jnp.zeros((4, 8)))
    assert found[-1] == Config(32, 2)


def test_the_tables_that_are_shipped_are_of_ops_and_their_configs():
    ops = {}
    for name in ("grouped_matmul", "routed_attention"):
        module = importlib.import_module(f"recursia.kernels.{name}")
        ops |= {op.name: op for op in vars(module).values() if isinstance(op, Op)}
    for file in tuned.FOLDER.glob("*.json"):
        for op, kernels in tuned.table(file).items():
            names = {each.name for each in ops[op].implementations if each.config}
            assert kernels.keys() <= names, file
