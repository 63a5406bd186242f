"""Every kernel against its reference, and through the compilers of machines that are not here."""

import jax
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from recursia import topology

TPUS = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
GPUS = ("h100:1",)
MACHINES = (*TPUS, *(pytest.param(gpu, marks=pytest.mark.gpu_compile) for gpu in GPUS))


def compile_for(machine, f, *shapes):
    """Compiles `f` for one device of a machine; returns the compiled program."""
    device = SingleDeviceSharding(topology.devices(machine)[0])
    return jax.jit(f, in_shardings=device, out_shardings=device).lower(*shapes).compile()


def tolerance(dtype, length=1):
    """Returns rtol and atol of sums of `length` terms of about one, each rounded to `dtype`."""
    eps = float(jax.numpy.finfo(dtype).eps)
    return {"rtol": 4 * eps, "atol": 4 * eps * np.sqrt(length)}
