"""What one chip offers: memory, arithmetic, how it reaches the others, and how compilers see it.

Peak numbers of the vendors, none of them reached. Bandwidths between chips are of one direction;
vendors print both directions added up, or bits.
"""

import dataclasses

_GIB = 1 << 30
_GPU_SHARE = 0.9  # what is left when XLA_CLIENT_MEM_FRACTION=0.9 is set; jax takes 3/4 by itself


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What XLA asks of an NVIDIA GPU besides: counts, bytes and GHz."""

    capability: tuple[int, int]
    cores: int
    l2_bytes: int
    shared_bytes: int
    clock_ghz: float


@dataclasses.dataclass(frozen=True)
class Chip:
    """One row of the table.

    Attributes:
      kinds: how names begin that a runtime gives such a device, the compiler's target first.
      memory_bytes: of main memory: on a TPU what the compiler allows a program, on a GPU all of it.
      flops: bfloat16 multiplications and additions a second, dense.
      hbm_bandwidth: bytes a second from and to main memory.
      link_bandwidth: bytes a second in one direction of one link to a neighbour in a torus, or of
        all of them together to the switch of a node.
      network_bandwidth: bytes a second in one direction, per chip, between slices or nodes.
      wraps: a torus closes along a side that this number divides; 0 is no torus but a switch.
      gpu: what a GPU's compiler asks besides; None for a TPU, whose compiler knows.
    """

    kinds: tuple[str, ...]
    memory_bytes: int
    flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    wraps: int = 0
    gpu: Gpu | None = None

    @property
    def hbm_bytes(self) -> int:
        """Bytes of main memory that a program may have."""
        return int(_GPU_SHARE * self.memory_bytes) if self.gpu else self.memory_bytes


# TPU: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read for compute, HBM bandwidth and the
# interconnect of v5e (400 GB/s in both directions over 4 ports), v5p (4,800 Gbit/s over 6) and v6e
# (800 GB/s over 4; an older text has 3,584 Gbit/s). memory_bytes is what libtpu 0.0.42 allows a
# program, from the message of one that is too large. Not on those pages, so not verified: the links
# of v4 (50 GB/s, Jouppi et al. 2023, arXiv 2304.01433) and the network of v4 and v5p (25 GB/s for
# the four chips of a host); v5e's and v6e's are a pod's 6.4 and 25.6 Tbit/s over 256 chips.
_TPUS = {
    "v4": Chip(("TPU v4",), int(30.75 * _GIB), 275e12, 1.2e12, 50e9, 6.25e9, 4),
    "v5e": Chip(("TPU v5 lite", "TPU v5e"), int(15.75 * _GIB), 197e12, 819e9, 50e9, 3.125e9, 16),
    "v5p": Chip(("TPU v5",), int(95.74 * _GIB), 459e12, 2765e9, 100e9, 6.25e9, 4),
    "v6e": Chip(("TPU v6 lite", "TPU v6e"), int(31.25 * _GIB), 918e12, 1640e9, 100e9, 12.5e9, 16),
}
# GPU, in the SXM form: NVIDIA's data sheets of A100 80GB, H100 and H200, whose 1,979 TFLOP/s count
# zeros that are skipped; half of it is dense. NVLink 600 and 900 GB/s in both directions. Network:
# one adapter for each GPU as in DGX systems, 200 and 400 Gbit/s.
_GPUS = {
    "a100": Chip(
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100"), 85_100_000_000, 312e12, 2039e9, 300e9, 25e9,
        gpu=Gpu((8, 0), 108, 41_943_040, 166_912, 1.41),
    ),
    "h100": Chip(
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"), 84_942_979_072, 989.5e12, 3352.32e9, 450e9, 50e9,
        gpu=Gpu((9, 0), 132, 52_428_800, 232_448, 1.98),
    ),
    "h200": Chip(
        ("NVIDIA H200",), 150_109_880_320, 989.5e12, 4813e9, 450e9, 50e9,
        gpu=Gpu((9, 0), 132, 62_914_560, 232_448, 1.98),
    ),
}  # fmt: skip
CHIPS = {**_TPUS, **_GPUS}


def of_topology(name: str) -> Chip:
    """Returns the chip of a topology such as "v5e:16x16" or "h100:8"."""
    return CHIPS[name.partition(":")[0]]


def of_kind(device_kind: str) -> Chip | None:
    """Returns the chip whose runtime calls its devices so; None if the table has none."""
    kinds = {kind: chip for chip in CHIPS.values() for kind in chip.kinds}
    found = max((k for k in kinds if device_kind.startswith(k)), key=len, default="")
    return kinds.get(found)
