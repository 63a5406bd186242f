"""The hosts of a topology, such as 64 hosts of 4 chips for "v5e:16x16"."""

import dataclasses
import math
import re

from recursia.chips import CHIPS
from recursia.errors import ConfigError

CPU = "cpu"
FORMS = "v5e:16x16 or v5e:16x16:2 (TPU), h100:8 or h100:8x2 (GPU), cpu:2 (hosts without either)"
# The sides of slices that exist: all of those of a flat torus; of a cube each side is one of these.
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = (1, 2)  # or a multiple of 4
_SYSTEMS = {
    "v4": "tpu-ubuntu2204-base",
    "v5e": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
_PER_HOST = 4  # chips of a TPU host
_ALONE = 8  # chips of the largest flat slice that is one host


@dataclasses.dataclass(frozen=True)
class Machines:
    """The hosts of a job.

    Attributes:
      topology: the name that was given; "" is this machine as it is.
      chip: a key of `chips.CHIPS`, or "cpu".
      shape: of a TPU slice, such as "16x16"; "" for others.
      slices: TPU slices.
      hosts: of all slices together.
      per_host: chips of a host; 0 without.
    """

    topology: str
    chip: str
    shape: str
    slices: int
    hosts: int
    per_host: int

    @property
    def is_tpu(self) -> bool:
        """Whether the chips are TPUs."""
        return bool(self.shape)

    @property
    def is_gpu(self) -> bool:
        """Whether the chips are GPUs."""
        return self.per_host > 0 and not self.shape

    @property
    def hosts_per_slice(self) -> int:
        """Hosts of one TPU slice; all of them for other chips."""
        return self.hosts // self.slices

    @property
    def chips_per_slice(self) -> int:
        """Chips of one TPU slice; all of them for other chips."""
        return self.hosts_per_slice * self.per_host

    @property
    def cloud_type(self) -> str:
        """The accelerator type of a TPU slice at Google Cloud, such as v5litepod-256.

        Types of v4 and v5p count the two cores of a chip.
        """
        counted = {"v5e": "v5litepod", "v6e": "v6e"}
        if self.chip in counted:
            return f"{counted[self.chip]}-{self.chips_per_slice}"
        return f"{self.chip}-{2 * self.chips_per_slice}"

    @property
    def cloud_system(self) -> str:
        """The system of a TPU host at Google Cloud, called its runtime version."""
        return _SYSTEMS[self.chip]


HERE = Machines("", CPU, "", 1, 1, 0)


def read(topology: str) -> Machines:
    """Returns the hosts of a topology.

    Args:
      topology: as for `recursia compile`, or "cpu:N" for N hosts without TPU or GPU.

    Raises:
      ConfigError: for a name that means none.
    """
    chip, _, size = topology.partition(":")
    if chip == CPU and (match := re.fullmatch(r"[1-9]\d*", size)):
        return Machines(topology, CPU, "", 1, int(size), 0)
    known = CHIPS.get(chip)
    if known and known.gpu and (match := re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", size)):
        return Machines(topology, chip, "", 1, int(match[2] or 1), int(match[1]))
    if known and not known.gpu and (match := re.fullmatch(r"(\d+(?:x\d+)+)(?::([1-9]\d*))?", size)):
        return _slices(topology, chip, match[1], int(match[2] or 1))
    raise ConfigError(f"--topology={topology}: takes {FORMS}")


def _slices(topology: str, chip: str, shape: str, slices: int) -> Machines:
    sides = [int(side) for side in shape.split("x")]
    count = math.prod(sides)
    if chip in ("v5e", "v6e"):
        exists = shape in _FLAT
        takes = f"one of {', '.join(_FLAT)}"
        hosts = 1 if count <= _ALONE else count // _PER_HOST
    else:
        is_side = lambda side: side in _CUBIC or (side > 0 and side % 4 == 0)
        exists = len(sides) == 3 and all(map(is_side, sides)) and count >= _PER_HOST
        takes = "three sides such as 4x4x8, each 1, 2 or a multiple of 4, and 4 chips at least"
        hosts = count // _PER_HOST
    if not exists:
        raise ConfigError(f"--topology={topology}: {chip} has no slice {shape}; takes {takes}")
    return Machines(topology, chip, shape, slices, slices * hosts, count // hosts)
