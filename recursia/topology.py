"""Machines that are not here: devices of a TPU pod or a GPU node, for the compiler alone.

A program lowered for them compiles as it would there; nothing can run. TPUs need libtpu, NVIDIA
GPUs the CUDA plugin of jax, and neither needs a driver or a device.
"""

import dataclasses
import os
from typing import Any

from recursia.errors import ConfigError

# libtpu asks a metadata server where it is, and takes a lock for the whole host, unless told so.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",  # of no consequence: each topology is named
}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What the compiler asks of an NVIDIA GPU, in bytes, hertz and counts."""

    name: str
    capability: tuple[int, int]
    cores: int
    memory_bytes: int
    bandwidth: int
    l2_bytes: int
    shared_bytes: int
    clock_ghz: float

    def target(self) -> str:
        """Returns it as the compiler reads it."""
        return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {self.shared_bytes + 1024}
  shared_memory_per_block_optin: {self.shared_bytes}
  threads_per_core_limit: 2048 core_count: {self.cores}
  fpus_per_core: {128 if self.capability >= (9, 0) else 64}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {self.bandwidth} l2_cache_size: {self.l2_bytes}
  clock_rate_ghz: {self.clock_ghz} device_memory_size: {self.memory_bytes}
  cuda_compute_capability {{ major: {self.capability[0]} minor: {self.capability[1]} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{self.name}"
"""


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 85_100_000_000, 2_039_000_000_000,
                41_943_040, 166_912, 1.41),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 84_942_979_072, 3_352_320_000_000,
                52_428_800, 232_448, 1.98),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 150_109_880_320, 4_813_000_000_000,
                62_914_560, 232_448, 1.98),
}  # fmt: skip
TPUS = ("v4", "v5e", "v5p", "v6e")


def devices(name: str) -> list[Any]:
    """Returns the devices of a topology: one per chip.

    Args:
      name: a TPU slice by its shape, "v5e:16x16" or "v5p:4x4x8"; several of them joined by the
        data center's network, "v5e:16x16:2"; the GPUs of a node, "h100:8"; nodes, "h100:8x4".

    Raises:
      ConfigError: for a name that means none, or a compiler that is not installed.
    """
    kind, _, size = name.partition(":")
    if kind in GPUS:
        return _gpus(GPUS[kind], name, size)
    if kind not in TPUS:
        raise ConfigError(
            f"--topology={name}: no {kind!r}; takes {', '.join((*TPUS, *GPUS))}, then ':' and the "
            "chips, such as v5e:16x16 or h100:8"
        )
    return _tpus(kind, name, size)


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


def _gpus(gpu: Gpu, name: str, size: str) -> list[Any]:
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
        "", platform="cuda", topology=f"1x{nodes}x{per_node}", target_config=gpu.target()
    ).devices
