"""Each device is given its own part of each array, and no whole copy is made on the way."""

import math

import jax
import numpy as np

from recursia import model, sharding
from recursia.convert import huggingface, loading, safetensors
from tests.helpers.checkpoints import LLAMA, place, write
from tests.helpers.tiny import is_equal


def test_parts_are_cut_from_the_file(tmp_path, monkeypatch):
    write(tmp_path, LLAMA)
    _, config = huggingface.model_of(LLAMA)
    arrays, specs = safetensors.read(tmp_path), model.specs(config)
    layout = sharding.MeshConfig(data=1, fsdp=4, tensor=2)
    where = sharding.fitting(specs, sharding.make_mesh(layout), layout.rules)
    asked, whole = [], loading.made

    def made(shape, where, part):
        def cut(index):
            found = part(index)
            assert found.size * math.prod(_ways(where)) <= math.prod(shape)
            asked.append(found.size)
            return found

        return whole(shape, where, cut)

    monkeypatch.setattr(loading, "made", made)
    split = loading.load(config, "llama", arrays, where)
    assert max(asked) < max(leaf.size for leaf in jax.tree.leaves(split)) / 2
    for leaf, there in zip(jax.tree.leaves(split), jax.tree.leaves(where), strict=True):
        assert leaf.sharding == there
    monkeypatch.setattr(loading, "made", whole)
    assert is_equal(split, loading.load(config, "llama", arrays, place(config)))
    ways = [math.prod(_ways(leaf.sharding)) for leaf in jax.tree.leaves(split)]
    assert max(ways) == 8 and np.mean(ways) > 3


def _ways(where):
    names = [n for n in where.spec if n is not None]
    flat = [axis for n in names for axis in ((n,) if isinstance(n, str) else n)]
    return [where.mesh.shape[axis] for axis in flat]
