"""The least time a step can take by arithmetic, by memory and by network.

  compute   FLOPs executed / (chips x peak)
  memory    bytes read and written by a chip / HBM bandwidth
  network   sum over collectives of executions x seconds of one

They may overlap, so a step takes at least the longest of them; with no overlap at all, their sum.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from recursia.chips import Chip
from recursia.preflight.collectives import Collective


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step."""

    compute: float
    memory: float
    network: float

    @property
    def overlapped(self) -> float:
        """Seconds if the three overlap in full: no step is faster."""
        return max(self.compute, self.memory, self.network)

    @property
    def serial(self) -> float:
        """Seconds if none overlaps."""
        return self.compute + self.memory + self.network

    @property
    def bound(self) -> str:
        """Which of them it is."""
        named = dataclasses.asdict(self)
        return max(named, key=lambda name: named[name])


def roofline(
    chip: Chip, devices: Sequence[Any], flops: float, hbm_bytes: float, moved: list[Collective]
) -> Roofline:
    """Returns the seconds of a step.

    Args:
      chip: of every device.
      devices: in the order of the mesh.
      flops: of all devices.
      hbm_bytes: of one device.
      moved: the collectives of the step.
    """
    return Roofline(
        compute=flops / len(devices) / chip.flops,
        memory=hbm_bytes / chip.hbm_bandwidth,
        network=sum(each.executions * seconds(chip, devices, each) for each in moved),
    )


def seconds(chip: Chip, devices: Sequence[Any], each: Collective) -> float:
    """Returns the seconds of one execution of a collective, of its slowest group.

    A group within a slice or node sends `each.sent` bytes over its links. One that spans several
    does so within each, and between them every chip sends its share of what the others lack.
    """
    return max(_seconds(chip, [devices[place] for place in group], each) for group in each.groups)


def _seconds(chip: Chip, group: list[Any], each: Collective) -> float:
    if len(group) == 1:
        return 0.0
    by_domain: dict[Any, list[Any]] = {}
    for device in group:
        by_domain.setdefault(_domain(device), []).append(device)
    domains, near = len(by_domain), max(by_domain.values(), key=len)
    if each.kind in ("collective-permute", "collective-broadcast"):
        return each.bytes / (chip.network_bandwidth if domains > 1 else chip.link_bandwidth)
    total = each.bytes * (2 if each.kind == "all-reduce" else 1)
    within = total * (len(near) - 1) / len(near) / _bandwidth(chip, near)
    between = total * (domains - 1) / domains / len(near) / chip.network_bandwidth
    return max(within, between)


def _domain(device: Any) -> Any:
    """What a device reaches by links: a TPU its slice, a GPU its node."""
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else device.process_index


def _bandwidth(chip: Chip, group: list[Any]) -> float:
    """Bytes a second that each of a group can send to the others over links, in rings.

    Along each side of the torus that a group spans it has two links where the side closes, and one
    where it is a line, whose ends have no more.
    """
    if not chip.wraps:
        return chip.link_bandwidth
    spans = np.ptp(np.array([device.coords for device in group]), axis=0) + 1
    links = sum(2 if span % chip.wraps == 0 else 1 for span in spans if span > 1)
    return max(links, 1) * chip.link_bandwidth
