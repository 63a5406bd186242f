"""A search climbs from a run to one that fits, compiles few, and says what to type for each."""

import json
import math

import pytest

from recursia import changes, cli, config, sharding, topology
from recursia.preflight import ladder, program, render, report

CHANGES = {"train.batch_size": "64", "train.seq_len": "256"}
HAVE = 1000


def needs(run):
    """Bytes that grow with the rows at a time, less so the more is computed again."""
    rows = run.train.batch_size // run.train.num_microbatches
    return 100 + 10 * run.mesh.tensor + (100 * rows >> ladder.UNITS.index(run.train.remat))


@pytest.fixture
def tried(monkeypatch):
    """What is compiled, as if it were."""
    runs = []

    def examine(run, topology, devices):
        made = program.make_trainer(run, devices)
        runs.append(run)
        size = needs(run)
        held = 100
        return {
            "fits": size <= HAVE,
            "mesh": dict(made.mesh.shape),
            "memory": {"parameters": held, "temporaries": size - held},
            "bytes_per_chip": size,
            "hbm_bytes_per_chip": HAVE,
            "tokens_per_second": 1e6,
            "serial_tokens_per_second": 1e6,
        }

    monkeypatch.setattr(report, "examine", examine)
    return runs


def climbed(name, machine, tries=8, folder=None, **overrides):
    run, said = config.load(name, CHANGES | overrides), []
    found = ladder.climb(run, machine, topology.devices(machine), tries, said.append, folder)
    return found, said


def typed(each):
    parts = each["overrides"].split()
    return dict(part.removeprefix("--config.").split("=") for part in parts)


def test_it_stops_at_the_first_that_fits_and_what_it_says_to_type_is_that_run(tried):
    found, said = climbed("recursive:tiny", "v5e:2x2", **{"mesh.data": "-1"})
    assert [each["fits"] for each in found] == [False] * (len(found) - 1) + [True]
    assert len(tried) == len(found) == len(said) > 2
    loaded = [
        config.load("recursive:tiny", CHANGES | {"mesh.data": "-1"} | typed(each)) for each in found
    ]
    assert loaded == tried
    assert "without changes" in render.table(found) and "--config.train.remat=block" in said[1]


def test_a_run_that_fits_is_compiled_once_as_it_is(tried):
    found, _ = climbed("recursive:tiny", "v5e:2x2", **{"train.batch_size": "4", "mesh.data": "-1"})
    assert len(found) == 1 and found[0]["overrides"] == ""


def test_microbatches_that_cannot_do_are_left_out(tried):
    climbed("recursive:tiny", "v5e:2x2", **{"mesh.data": "-1"})
    parts = [run.train.num_microbatches for run in tried if run.train.remat == "block"]
    assert parts == [1, 4]  # two microbatches leave 1,710 of 3,310 bytes at best


def test_where_none_fits_the_limit_holds_and_other_meshes_are_reached(tried, monkeypatch):
    monkeypatch.setitem(globals(), "needs", lambda run: 2 * HAVE)
    found, _ = climbed("recursive:tiny", "v5e:2x2", 5, **{"mesh.data": "-1"})
    assert len(found) == 5 and not any(each["fits"] for each in found)


def test_rungs_are_ordered_by_what_they_cost():
    run = config.load("moeut:tiny", CHANGES)
    every = list(ladder.rungs(run, 8))
    changed = [set(changes.overrides(run, each)) for each in every]
    kinds = ["mesh" if any("mesh" in f for f in each) else len(each) for each in changed]
    assert kinds[:2] == [0, 1] and kinds.index("mesh") == sum(kind != "mesh" for kind in kinds)
    split = [each.mesh.tensor * each.mesh.context for each in every if each.mesh != run.mesh]
    assert split == sorted(split) and max(split) > 1


@pytest.mark.parametrize(
    ("name", "experts"), [("recursive:tiny", {1}), ("moeut:tiny", {1, 2, 4, 8})]
)
def test_every_mesh_by_powers_of_two_is_a_rung(name, experts):
    found = [tuple(sizes.values()) for sizes in ladder._meshes(config.load(name, {}), 16)]
    assert len(set(found)) == len(found) and {math.prod(sizes) for sizes in found} == {16}
    of = lambda axis: {sizes[sharding.AXES.index(axis)] for sizes in found}
    assert of("data") == of("fsdp") == {1, 2, 4, 8, 16}
    assert of("context") == of("tensor") == {1, 2, 4, 8} and of("expert") == experts


@pytest.mark.slow
def test_what_was_compiled_before_is_read(tried, tmp_path):
    same = dict(folder=tmp_path, **{"mesh.data": "-1"})
    first, _ = climbed("vanilla:tiny", "v5e:2x2", 2, **same)
    count = len(tried)
    again, _ = climbed("vanilla:tiny", "v5e:2x2", 2, **same)
    assert json.dumps(again) == json.dumps(first) and len(tried) == count
    climbed("vanilla:tiny", "v5e:2x2", 2, **same, **{"train.batch_size": "32"})
    assert len(tried) > count


def test_where_no_mesh_is_valid_one_line_says_why(capsys):
    few = ["--config.train.batch_size=3", "--config.train.seq_len=9"]
    code = cli.main(["compile", "--config=vanilla:tiny", "--topology=v5e:4x4", "--search", *few])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and "no mesh of 16 devices is valid" in line and "do not divide" in line
