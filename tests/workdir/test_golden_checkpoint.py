"""A checkpoint of each format that was ever written loads for ever, on every jax and orbax.

`checkpoint_1.tar.gz` holds two finished runs of four steps of the same tiny model, as directories:
`run`, whose step has digests, and `older`, as it was before steps had any. `checkpoint_2.tar.gz`
holds the same run with small arrays stored as one. The arrays of their step are in
`checkpoint_1.npz`.
"""

import contextlib
import dataclasses
import pathlib
import tarfile

import jax
import numpy as np
import pytest

from recursia.train import loop
from recursia.workdir import directory, trained
from tests.helpers.runs import rows, saved

HERE = pathlib.Path(__file__).parent


@pytest.fixture(params=[(1, "run"), (1, "older"), (2, "run")], ids=str)
def workdir(request, tmp_path):
    version, name = request.param
    with contextlib.closing(tarfile.open(HERE / f"checkpoint_{version}.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / name


@pytest.fixture(scope="module")
def arrays():
    with np.load(HERE / "checkpoint_1.npz") as file:
        return dict(file)


def assert_saved(tree, arrays, prefix=""):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        saved = arrays[prefix + jax.tree_util.keystr(path)]
        assert leaf.dtype == saved.dtype
        np.testing.assert_array_equal(np.asarray(leaf), saved)


def test_parameters_are_those_that_were_saved(workdir, arrays, capsys):
    found = trained.load(workdir, 4)
    assert_saved(found.params, arrays, "['params']")
    assert len(jax.tree.leaves(found.params)) == sum(
        name.startswith("['params']") for name in arrays
    )
    assert ("without digests" in capsys.readouterr().err) is (workdir.name == "older")


@pytest.mark.few(1)
def test_a_run_goes_on_from_it(workdir, arrays, monkeypatch):
    run = directory.recorded(workdir)
    run = dataclasses.replace(
        run,
        data=dataclasses.replace(run.data, path=(str(workdir / "data"),)),
        train=dataclasses.replace(run.train, num_steps=5),
    )
    states, real = [], loop.Loop.run_from

    def run_from(self, state, start):
        states.append(jax.device_get(state))
        real(self, state, start)

    monkeypatch.setattr(loop.Loop, "run_from", run_from)
    loop.train(run, workdir, {})
    (state,) = states
    moments = {n.removeprefix("['opt_state']"): x for n, x in arrays.items() if "opt_state" in n}
    assert int(state.step) == 4 == arrays["['step']"]
    assert_saved(state.params, arrays, "['params']")
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.opt_state)]
    assert sorted(leaves) == sorted(x.tobytes() for x in moments.values())
    assert saved(workdir)[-1] == 5 and rows(workdir)[-1]["step"] == 5


def test_the_files_are_small():
    assert sum(path.stat().st_size for path in HERE.glob("checkpoint_*")) < 300_000
