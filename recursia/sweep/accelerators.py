"""The accelerators of this machine, which trials at a time divide; found without opening one."""

import functools
import importlib.util
import itertools
import os
import pathlib
import re
import subprocess

VISIBLE = "CUDA_VISIBLE_DEVICES"
_NONE = ("", "-1", "NoDevFiles")  # after one of which CUDA reads no further
_GPU, _MIG = re.compile(r"GPU (\d+):"), re.compile(r"\s+MIG .*\(UUID: (\S+)\)")
_SECONDS = 60  # that nvidia-smi may take


def gpus() -> list[str]:
    """Returns the NVIDIA GPUs that JAX may use here, as `CUDA_VISIBLE_DEVICES` names them.

    They are those that the variable names, or else all that nvidia-smi lists; a MIG instance counts
    as one.
    """
    platforms = _platforms()
    if platforms and not {"cuda", "gpu"} & platforms:
        return []
    if (named := os.environ.get(VISIBLE)) is not None:
        items = (item.strip() for item in named.split(","))
        return list(itertools.takewhile(lambda item: item not in _NONE, items))
    return _listed()


@functools.cache
def _listed() -> list[str]:
    try:
        command = ("nvidia-smi", "--list-gpus")
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    instances: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if found := _GPU.match(line):
            instances[found[1]] = []
        elif (found := _MIG.match(line)) and instances:
            instances[[*instances][-1]].append(found[1])
    return [name for gpu, parts in instances.items() for name in parts or [gpu]]


def has_tpu() -> bool:
    """Returns whether JAX may use TPU chips here."""
    if platforms := _platforms():
        return "tpu" in platforms
    device = pathlib.Path("/dev")
    has_chips = any(device.glob("accel[0-9]*")) or any(device.glob("vfio/[0-9]*"))
    return has_chips and importlib.util.find_spec("libtpu") is not None


def is_cpu() -> bool:
    """Returns whether JAX may use CPUs alone."""
    return _platforms() == {"cpu"}


def _platforms() -> set[str]:
    return set(filter(None, os.environ.get("JAX_PLATFORMS", "").split(",")))
