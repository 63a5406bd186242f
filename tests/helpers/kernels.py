"""Kernels interpreted on a CPU, and compiled ahead of time for TPUs and GPUs."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import SingleDeviceSharding

from recursia import topology
from recursia.kernels.dispatch import Op

TPUS = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
GPUS = ("h100:1",)
TPU = pltpu.InterpretParams(
    detect_races=True,
    out_of_bounds_reads="raise",
    uninitialized_memory="nan",
    num_cores_or_threads=2,
)
GPU: Any = None
if hasattr(plgpu, "InterpretGPUParams"):
    GPU = plgpu.InterpretGPUParams(detect_races=True, uninitialized_memory="nan")
NEEDS_INTERPRETER = pytest.mark.skipif(
    GPU is None, reason=f"jax {jax.__version__} does not interpret Mosaic GPU kernels"
)


INTERPRETED = {"pallas_tpu": TPU, "megablox": TPU, "splash": True, "mosaic_gpu": GPU}


def backend(op, name, config=None):
    """Returns a function of arrays: an op's reference, or an implementation that is interpreted."""
    if name == "reference":
        return op.reference
    (each,) = (each for each in op.implementations if each.name == name)
    how = {"interpret": INTERPRETED[name]}
    if config is not None:
        return functools.partial(each.run, config=config, **how)
    return lambda *arrays, **static: each.apply(op, arrays, static, **how)


def told(op, platform, *arrays, **static):
    """Returns why the implementations of a platform decline, up to the one that "runs"."""
    found = {}

    def run(*arrays):
        name, outs, reasons = op.choose(arrays, static, "auto", platform)
        found.update(reasons | {name: "runs"})
        return outs

    jax.eval_shape(run, *arrays)
    return found


def compile_for(machine, f, *shapes):
    """Compiles `f` for one device of a machine; returns the compiled program."""
    device = SingleDeviceSharding(topology.devices(machine)[0])
    return jax.jit(f, in_shardings=device, out_shardings=device).lower(*shapes).compile()


def tolerance(dtype, length=1):
    """Returns rtol and atol of sums of `length` terms of about one, each rounded to `dtype`."""
    eps = float(jax.numpy.finfo(dtype).eps)
    return {"rtol": 4 * eps, "atol": 4 * eps * np.sqrt(length)}


def run_interpreted(monkeypatch, platform):
    """Makes every op take its kernel for a platform, interpreted in memory that starts as NaN.

    Ops or arguments without one take the reference, as they do on that platform.
    """
    names = {"tpu": ("pallas_tpu", "megablox"), "cuda": ("mosaic_gpu",)}[platform]
    how = True if platform == "tpu" else GPU

    def run(op, *arrays, backend="auto", **static):
        for each in op.implementations:
            if each.name in names:
                try:
                    return each.apply(op, arrays, static, interpret=how)
                except NotImplementedError:
                    break
        return op.reference(*arrays, **static)

    monkeypatch.setattr(Op, "__call__", run)


def normal(*shape, dtype=jnp.float32, seed=0):
    """Returns standard normal numbers that depend on the shape and the seed."""
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape), dtype)
