"""A search takes every legal way to run, compiles few, and says what to type for each."""

import math

import pytest

from recursia import cli, config, sharding, topology
from recursia.preflight import predict, program, render, report, search

CHANGES = {"train.batch_size": "64", "train.seq_len": "256"}


def by_rows(made):
    """Temporaries that grow with the tokens at a time, and less so the more is computed again."""
    train, again = made.run.train, predict.REMATS.index(made.run.model.remat)
    rows = 1000 * train.batch_size // train.num_microbatches // made.mesh.shape["context"]
    return 1000 >> again, rows >> again


@pytest.fixture
def tried(monkeypatch):
    """What is compiled, as if parallel products were slow and whole parameters did not fit."""
    runs = []

    def examine(run, topology, devices, *, with_advice):
        program.trainer(run, devices)
        runs.append(run)
        rate = 1e6 / (run.mesh.tensor + len(runs))
        return {
            "fits": run.mesh.data < 4,
            "bytes_per_chip": 1e9,
            "hbm_bytes_per_chip": 2e9,
            "tokens_per_second": rate,
            "serial_tokens_per_second": rate,
        }

    monkeypatch.setattr(report, "examine", examine)
    monkeypatch.setattr(predict, "temporary_parts", by_rows)
    return runs


def searched(name, machine, tries=5, **changes):
    changes = CHANGES | changes
    run, said = config.load(name, changes), []
    return search.search(run, machine, topology.devices(machine), tries, said.append), said


def typed(each):
    parts = each["overrides"].split()
    return dict(part.removeprefix("--config.").split("=") for part in parts)


def test_it_ranks_what_fits_and_compiles_no_more_than_told(tried):
    found, said = searched("recursive:tiny", "v5e:2x2")
    assert len(tried) == len(found) == 5 and len(said) == 6
    fitting = [each for each in found if each["fits"]]
    assert found[: len(fitting)] == fitting
    rates = [each["serial_tokens_per_second"] for each in fitting]
    assert rates == sorted(rates, reverse=True)
    # What it says to type is legal, and is what was compiled.
    loaded = [config.load("recursive:tiny", CHANGES | typed(each)) for each in found]
    assert all(run in tried for run in loaded)
    assert "overrides" in render.table(found)


def test_of_ways_that_differ_in_data_and_fsdp_alone_it_compiles_two(tried):
    searched("recursive:tiny", "v5e:2x4", 12)
    alike = [
        (run.mesh.tensor, run.mesh.context, run.train.num_microbatches, run.model.remat)
        for run in tried
    ]
    assert len(tried) == 12 and max(map(alike.count, alike)) == 2


@pytest.mark.parametrize("mesh", [{"mesh.context": "2"}, {"mesh.data": "2", "mesh.fsdp": "-1"}])
def test_it_starts_from_any_mesh(tried, mesh):
    found, _ = searched("recursive:tiny", "v5e:2x2", 1, **mesh)
    run = config.load("recursive:tiny", CHANGES | mesh | typed(found[0]))
    assert run.mesh.sizes == {"data": 1, "fsdp": 4, "expert": 1, "context": 1, "tensor": 1}


def test_a_batch_of_few_sequences_splits_them(tried):
    found, _ = searched("recursive:tiny", "v5e:2x2", 9, **{"train.batch_size": "2"})
    assert found and all(run.mesh.context * run.mesh.tensor >= 2 for run in tried)
    assert max(run.mesh.context for run in tried) > 1


def test_ways_that_do_not_divide_are_left_out_and_the_others_found():
    """Of 256 devices fsdp can have 64: 960 columns divide by no more."""
    run, devices = config.load("vanilla:360m", {}), topology.devices("v5e:16x16")
    every = search._candidates(run, devices)
    assert max(each.run.mesh.fsdp for each in every) == 64
    one = min(every, key=lambda each: (-each.run.mesh.fsdp, each.cost))
    ((_, size),) = search._sized(devices, [one])
    assert size > one.held_bytes > 0


@pytest.mark.parametrize(
    ("name", "experts"), [("recursive:tiny", {1}), ("moeut:tiny", {1, 2, 4, 8})]
)
def test_every_mesh_by_powers_of_two_is_taken(name, experts):
    run = config.load(name, {})
    found = [tuple(sizes.values()) for sizes in search._meshes(run, 16)]
    assert len(set(found)) == len(found) and {math.prod(sizes) for sizes in found} == {16}
    of = lambda axis: {sizes[sharding.AXES.index(axis)] for sizes in found}
    assert of("data") == of("fsdp") == {1, 2, 4, 8, 16}
    assert of("context") == of("tensor") == {1, 2, 4, 8} and of("expert") == experts


def test_where_no_mesh_is_legal_one_line_says_why(capsys):
    few = ["--config.train.batch_size=3", "--config.train.seq_len=9"]
    code = cli.main(["compile", "--config=vanilla:tiny", "--topology=v5e:4x4", "--search", *few])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and "no mesh of 16 devices is legal" in line and "do not divide" in line
