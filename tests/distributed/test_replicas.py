"""Replicas in processes of their own: those of one process, before and after a stop."""

import shutil

import pytest

from tests.helpers import cluster
from tests.helpers.cluster import SECTIONS, STEPS, alone, train
from tests.helpers.runs import is_equal, rows, saved, state_of, values, write_config, write_text

# At step 2, the first checkpoint, a fragment is in flight: it left after 1 and arrives after 3.
REPLICAS = {"count": 2, "every_steps": 3, "num_fragments": 2, "delay": 2}
MESH = {"data": 1, "replica": 2}


@pytest.mark.slow
def test_two_processes_of_a_replica_each_equal_one_and_resume_to_the_bit(tmp_path, monkeypatch):
    write_text(tmp_path)
    sections = {**SECTIONS, "mesh": MESH, "replicas": REPLICAS}
    write_config(tmp_path / "fixed.py", values(tmp_path, "fixed", **sections))
    places = [tmp_path / name for name in ("two", "one", "again")]
    two, one, again = places
    cluster.run(tmp_path / "output", train(tmp_path, two), count=2)
    alone(monkeypatch, 2, train(tmp_path, one))
    shutil.copytree(two, again)
    shutil.rmtree(again / "checkpoints" / str(STEPS))
    done = cluster.run(tmp_path / "output", train(tmp_path, again), count=2)
    assert any(f"resuming {again} at step 2" in line for line in done[0].said)
    assert max(row.get("exchanged_bytes", 0) for row in rows(two)) > 0
    for place in places:
        assert saved(place) == [2, STEPS]
        assert rows(place) == rows(two)
        assert is_equal(state_of(place, STEPS), state_of(two, STEPS))
