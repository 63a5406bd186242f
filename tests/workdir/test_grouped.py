"""Small arrays that every device holds whole are stored as one; others as they are."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from recursia import sharding
from recursia.workdir import grouped, steps
from recursia.workdir.checkpoint import Checkpoints


def state():
    """Returns arrays of several types, sizes and shardings."""
    mesh = sharding.make_mesh(sharding.MeshConfig(data=1, fsdp=2), jax.devices()[:2])
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("fsdp",)))
    put = lambda x, where: jax.device_put(jnp.asarray(x), where)
    return {
        "params": {
            "norm": put(np.arange(6.0, dtype=np.float32).reshape(2, 3), whole),
            "half": put(np.arange(4, dtype=jnp.bfloat16), whole),
            "empty": put(np.zeros((0, 3), np.float32), whole),
            "split": put(np.arange(8.0, dtype=np.float32), split),
            "large": put(np.arange(grouped.MOST_BYTES // 4 + 1, dtype=np.float32), whole),
        },
        "step": put(np.int32(7), whole),
        "scale": put(np.float32(0.5), whole),
    }


def test_small_whole_arrays_are_one_by_type():
    arrays, groups = grouped.stored(state())
    alone = {"params.split", "params.large"}
    held = {frozenset(name for name, _ in group) for group in groups.values()}
    assert set(arrays) == alone | set(groups)
    wanted = ({"params.norm", "params.empty", "scale"}, {"params.half"}, {"step"})
    assert held == {frozenset(names) for names in wanted}


def test_any_part_of_a_state_comes_back_to_the_bit_where_it_is_wanted(tmp_path):
    saved, here = state(), jax.devices()[0]
    place = lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(here)
    )
    with contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(7, saved, {})
        checkpoints.finish()
        assert json.loads(json.dumps(steps.meta(checkpoints.folder(7))["groups"]))
        for part in (saved, {"params": {"norm": saved["params"]["norm"]}}, {"step": saved["step"]}):
            found = checkpoints.restore(7, jax.tree.map(place, part))
            assert jax.tree.structure(found) == jax.tree.structure(part)
            for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(part), strict=True):
                assert ours.dtype == theirs.dtype and ours.devices() == {here}
                assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
