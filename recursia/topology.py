"""Deviceless topologies: TPU slices and GPU nodes to compile for, with no device present.

A program lowered for them compiles as it would there; nothing can run. TPUs need libtpu, NVIDIA
GPUs the CUDA plugin of jax, and neither needs a driver or a device.
"""

import os
from typing import Any

from recursia.chips import CHIPS, Chip, Gpu
from recursia.errors import ConfigError

# libtpu asks a metadata server where it is, and takes a lock for the whole host, unless told so.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # of no consequence: each topology is named
}


def devices(name: str) -> list[Any]:
    """Returns the devices of a topology: one per chip.

    Args:
      name: a TPU slice by its shape, "v5e:16x16" or "v5p:4x4x8"; several of them joined by the
        data center's network, "v5e:16x16:2"; the GPUs of a node, "h100:8"; nodes, "h100:8x4".

    Raises:
      ConfigError: for a name that means none, or a compiler that is not installed.
    """
    kind, _, size = name.partition(":")
    if (chip := CHIPS.get(kind)) is None:
        raise ConfigError(
            f"--topology={name}: no {kind!r}; takes {', '.join(CHIPS)}, then ':' and the chips, "
            "such as v5e:16x16 or h100:8"
        )
    return _gpus(chip, chip.gpu, name, size) if chip.gpu else _tpus(kind, name, size)


def _tpus(kind: str, name: str, size: str) -> list[Any]:
    from jax.experimental import topologies

    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise ConfigError(f"--topology={name}: needs libtpu; pip install 'recursia[tpu]'") from None
    shape, _, slices = size.partition(":")
    options: dict[str, Any] = {"num_slices": int(slices)} if slices.isdecimal() else {}
    if kind == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip as one device
    if set(shape.split("x")) == {"1"}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return topologies.get_topology_desc(
            topology_name=f"{kind}:{shape}", platform="tpu", **options
        ).devices
    except Exception as error:  # jaxlib raises its own for a size that does not exist
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--topology={name}: libtpu knows no such slice: {reason}") from None


def _gpus(chip: Chip, gpu: Gpu, name: str, size: str) -> list[Any]:
    from jax.experimental import topologies

    per_node, _, nodes = size.partition("x")
    nodes = nodes or "1"
    if not all(count.isdecimal() and int(count) for count in (per_node, nodes)):
        raise ConfigError(
            f"--topology={name}: takes the GPUs of a node, such as h100:8, and the nodes if there "
            "are several, such as h100:8x4"
        )
    try:
        import jax_plugins.xla_cuda13  # noqa: F401
    except ImportError:
        raise ConfigError(
            f"--topology={name}: needs the CUDA plugin of jax; pip install 'recursia[cuda]' in an "
            "environment of its own"
        ) from None
    return topologies.get_topology_desc(
        "", platform="cuda", topology=f"1x{nodes}x{per_node}", target_config=_target(chip, gpu)
    ).devices


def _target(chip: Chip, gpu: Gpu) -> str:
    """Returns a GPU as its compiler reads it."""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_bytes + 1024}
  shared_memory_per_block_optin: {gpu.shared_bytes}
  threads_per_core_limit: 2048 core_count: {gpu.cores}
  fpus_per_core: {128 if gpu.capability >= (9, 0) else 64}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.hbm_bandwidth)} l2_cache_size: {gpu.l2_bytes}
  clock_rate_ghz: {gpu.clock_ghz} device_memory_size: {chip.memory_bytes}
  cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{chip.kinds[0]}"
"""
