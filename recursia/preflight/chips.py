"""What one chip offers: memory, arithmetic, and how it reaches the others.

Peak numbers of the vendors, none of them reached; of arithmetic, those by which training measures
its utilisation. Bandwidths between chips are of one direction; vendors print both directions added
up, or bits.
"""

import dataclasses

from recursia.train.metrics import PEAK_FLOPS

_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One row of the table.

    Attributes:
      hbm_bytes: of main memory that a program may have.
      flops: bfloat16 multiplications and additions a second, dense.
      hbm_bandwidth: bytes a second from and to main memory.
      link_bandwidth: bytes a second in one direction of one link to a neighbour in a torus, or of
        all of them together to the switch of a node.
      network_bandwidth: bytes a second in one direction, per chip, between slices or nodes.
      wraps: a torus closes along a side that this number divides; 0 is no torus but a switch.
    """

    hbm_bytes: int
    flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    wraps: int = 0


# TPU: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, read for compute, HBM bandwidth and the
# interconnect of v5e (400 GB/s in both directions over 4 ports), v5p (4,800 Gbit/s over 6) and v6e
# (800 GB/s over 4; an older text has 3,584 Gbit/s). hbm_bytes is what libtpu 0.0.42 allows a
# program, from the message of one that is too large. Not on those pages, so not verified: the links
# of v4 (50 GB/s, Jouppi et al. 2023, arXiv 2304.01433) and the network of v4 and v5p (25 GB/s for
# the four chips of a host); v5e's and v6e's are a pod's 6.4 and 25.6 Tbit/s over 256 chips.
_TPUS = {
    "v4": Chip(int(30.75 * _GIB), PEAK_FLOPS["TPU v4"], 1.2e12, 50e9, 6.25e9, 4),
    "v5e": Chip(int(15.75 * _GIB), PEAK_FLOPS["TPU v5e"], 819e9, 50e9, 3.125e9, 16),
    "v5p": Chip(int(95.74 * _GIB), PEAK_FLOPS["TPU v5p"], 2765e9, 100e9, 6.25e9, 4),
    "v6e": Chip(int(31.25 * _GIB), PEAK_FLOPS["TPU v6e"], 1640e9, 100e9, 12.5e9, 16),
}
# GPU, in the SXM form: NVIDIA's data sheets of A100 80GB, H100 and H200, whose 1,979 TFLOP/s count
# zeros that are skipped; half of it is dense. NVLink 600 and 900 GB/s in both directions. Network:
# one adapter for each GPU as in DGX systems, 200 and 400 Gbit/s. Nine tenths of the memory: what
# is left when XLA_CLIENT_MEM_FRACTION=0.9 is set; JAX takes three quarters by itself.
_GPUS = {
    "a100": Chip(int(0.9 * 85_100_000_000), PEAK_FLOPS["NVIDIA A100"], 2039e9, 300e9, 25e9),
    "h100": Chip(int(0.9 * 84_942_979_072), PEAK_FLOPS["NVIDIA H100"], 3352e9, 450e9, 50e9),
    "h200": Chip(int(0.9 * 150_109_880_320), PEAK_FLOPS["NVIDIA H200"], 4813e9, 450e9, 50e9),
}
CHIPS = {**_TPUS, **_GPUS}
