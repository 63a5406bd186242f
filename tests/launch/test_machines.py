"""The hosts of a topology."""

import pytest

from recursia import chips
from recursia.errors import ConfigError
from recursia.launch import machines
from tests.helpers.refusals import refused

# Hosts, chips of a host, slices, and the type at Google Cloud.
HOSTS = {
    "v4:2x2x1": (1, 4, 1, "v4-8"),
    "v4:4x4x4": (16, 4, 1, "v4-128"),
    "v5e:1x1": (1, 1, 1, "v5litepod-1"),
    "v5e:2x4": (1, 8, 1, "v5litepod-8"),
    "v5e:4x4": (4, 4, 1, "v5litepod-16"),
    "v5e:16x16": (64, 4, 1, "v5litepod-256"),
    "v5e:16x16:2": (128, 4, 2, "v5litepod-256"),
    "v5p:4x8x8": (64, 4, 1, "v5p-512"),
    "v6e:8x16": (32, 4, 1, "v6e-128"),
    "h100:8": (1, 8, 1, None),
    "h100:8x2": (2, 8, 1, None),
    "a100:4x3": (3, 4, 1, None),
    "cpu:3": (3, 0, 1, None),
}


@pytest.mark.parametrize("topology", HOSTS)
def test_hosts_of_a_topology(topology):
    found = machines.read(topology)
    hosts, per_host, slices, cloud_type = HOSTS[topology]
    assert (found.hosts, found.per_host, found.slices) == (hosts, per_host, slices)
    assert found.is_tpu == (cloud_type is not None)
    assert found.is_gpu == (found.chip in chips.CHIPS and not found.is_tpu)
    if found.is_tpu:
        assert found.cloud_type == cloud_type and found.cloud_system
        assert found.hosts_per_slice * found.slices == found.hosts


@pytest.mark.parametrize(
    ("topology", "part"),
    [
        ("v9:2x2", "takes v5e:16x16"),
        ("v5e", "takes v5e:16x16"),
        ("v5e:16", "takes v5e:16x16"),
        ("v5e:0x0", "no slice 0x0"),
        ("v5e:3x5", "one of 1x1, 2x2"),
        ("v5p:4x4", "three sides"),
        ("v5p:1x1x2", "4 chips at least"),
        ("v5p:3x4x4", "a multiple of 4"),
        ("h100:8x", "takes v5e:16x16"),
        ("h100:0", "takes v5e:16x16"),
        ("cpu:0", "takes v5e:16x16"),
        ("v5e:4x4:0", "takes v5e:16x16"),
    ],
)
def test_a_topology_that_means_no_machines_is_refused(topology, part):
    with refused(ConfigError, f"--topology={topology}", part):
        machines.read(topology)
