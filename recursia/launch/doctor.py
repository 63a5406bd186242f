"""What a machine has and how fast it is, in a form that is safe to show to others."""

import getpass
import importlib.metadata
import math
import os
import pathlib
import platform
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from recursia import buckets, chips

PACKAGES = ("recursia", "jax", "jaxlib", "libtpu", "jax-cuda13-plugin", "flax", "optax")
PACKAGES += ("orbax-checkpoint", "tensorstore", "grain", "numpy")
# Variables that change what a run does. Of others that begin so it is said that they are set.
VARIABLES = re.compile(
    r"XLA_FLAGS|LIBTPU_INIT_ARGS|XLA_(PYTHON_)?CLIENT_\w+|JAX_(?!.*DIR)\w+|CUDA_VISIBLE_DEVICES|"
    r"NVIDIA_VISIBLE_DEVICES|TPU_(ACCELERATOR_TYPE|TOPOLOGY|WORKER_ID|CHIPS_PER_\w+|SKIP_MDS_QUERY)|"
    r"MEGASCALE_(NUM_SLICES|SLICE_ID)|NCCL_(DEBUG|ALGO|PROTO|P2P_\w+|IB_DISABLE)|OMP_NUM_THREADS|"
    r"(SLURM_(NTASKS|PROCID|LOCALID|NNODES|RESTART_COUNT))|OMPI_COMM_WORLD_(SIZE|RANK)"
)
FAMILIES = ("XLA_", "JAX_", "TPU_", "MEGASCALE_", "NCCL_", "CUDA_", "LIBTPU_", "SLURM_", "OMPI_")
FAMILIES += ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX", "RECURSIA_", "LD_LIBRARY_PATH")
_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|KEY|AUTH", re.IGNORECASE)
_SECONDS = 0.5  # a measurement lasts at least so long
_WIDTHS = {"cpu": 1024}  # of the matrices that are multiplied; others: 8192
_BYTES = {"cpu": 1 << 22}  # of the array that is reduced, on each device; others: 256 MiB


def examine(workdir: pathlib.Path | None) -> dict[str, Any]:
    """Returns what was found; all processes of a run must call it.

    Args:
      workdir: a directory of runs; None tests none.

    Returns:
      versions, devices, environment: as text, by name.
      workdir: `ok` and `reason`, the seconds to write and sync a file, and the free bytes, which a
        bucket does not have; missing if none was given.
      matmul: dtype, width, FLOP/s of one device, and their share of the peak if it is known.
      all_reduce: bytes of each device, seconds, and bytes a second that each device has to send;
        missing with one device.
    """
    found: dict[str, Any] = {
        "versions": versions(),
        "devices": devices(),
        "environment": environment(os.environ),
    }
    if workdir is not None:
        found["workdir"] = writable(workdir)
    found["matmul"] = matmul()
    if jax.device_count() > 1:
        found["all_reduce"] = all_reduce()
    return {name: clean(value) for name, value in found.items()}


def versions() -> dict[str, str]:
    """Returns the versions of what is installed."""
    found = {"Python": platform.python_version(), "system": platform.platform(terse=True)}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def devices() -> dict[str, Any]:
    """Returns the devices of this process and of all."""
    first = jax.local_devices()[0]
    limit = (first.memory_stats() or {}).get("bytes_limit") if first.platform != "cpu" else None
    found = {
        "platform": first.platform,
        "kind": first.device_kind,
        "here": jax.local_device_count(),
        "in all": jax.device_count(),
        "processes": jax.process_count(),
        "CPUs": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
    }
    return {**found, "memory": f"{limit / 1e9:.1f} GB"} if limit else found


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that matter; values that may name a person or a place are left out."""
    found = {}
    for name in sorted(variables):
        if not name.startswith(FAMILIES):
            continue
        is_plain = VARIABLES.fullmatch(name) and not _SECRET.search(name)
        found[name] = variables[name] if is_plain else "is set"
    return found


def writable(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns whether a file can be written in a directory or a bucket, and how fast."""
    name = f".doctor-{os.getpid()}-{jax.process_index()}"
    if buckets.is_place(workdir):
        return _writable_there(workdir, name)
    made = next((p for p in (workdir, *workdir.absolute().parents) if p.exists()), workdir)
    probe = made / name
    start = time.monotonic()
    try:
        with probe.open("wb") as file:
            file.write(bytes(1 << 20))
            file.flush()
            os.fsync(file.fileno())
        seconds, free = time.monotonic() - start, shutil.disk_usage(made).free
        probe.unlink()
    except OSError as error:
        return {"ok": False, "reason": error.strerror or type(error).__name__}
    return {"ok": True, "seconds": seconds, "free_bytes": free, "exists": made == workdir}


def _writable_there(workdir: pathlib.Path, name: str) -> dict[str, Any]:
    start = time.monotonic()
    try:
        (workdir / name).write_bytes(bytes(1 << 20))
        seconds = time.monotonic() - start
        (workdir / name).unlink()
        return {"ok": True, "seconds": seconds, "exists": workdir.exists()}
    except OSError as error:
        return {"ok": False, "reason": error.strerror or type(error).__name__}


def matmul() -> dict[str, Any]:
    """Returns the speed of products of square matrices on one device."""
    device = jax.local_devices()[0]
    width = _WIDTHS.get(device.platform, 8192)
    dtype = jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    with jax.default_device(device):
        x = jnp.ones((width, width), dtype) / width
        seconds = timed(jax.jit(jnp.matmul), x, x)
    flops = 2 * width**3 / seconds
    found = {"dtype": jnp.dtype(dtype).name, "width": width, "flops_per_second": flops}
    chip = chips.of_kind(device.device_kind)
    return {**found, "share_of_peak": flops / chip.flops} if chip else found


def all_reduce() -> dict[str, Any]:
    """Returns the speed of a sum over all devices, each of which holds one row."""
    everywhere = Mesh(np.array(jax.devices()), ("all",))
    count, size = jax.device_count(), _BYTES.get(jax.devices()[0].platform, 1 << 28) // 4
    rows = NamedSharding(everywhere, PartitionSpec("all"))
    x = jax.jit(lambda: jnp.ones((count, size)), out_shardings=rows)()
    copies = NamedSharding(everywhere, PartitionSpec())
    seconds = timed(jax.jit(lambda x: x.sum(0), out_shardings=copies), x)
    sent = 2 * (count - 1) / count * 4 * size
    return {"bytes": 4 * size, "seconds": seconds, "bytes_per_second": sent / seconds}


def timed(function: Callable, *arguments: Any) -> float:
    """Returns the seconds of one call: the median of five groups of calls, after a warm-up."""
    jax.block_until_ready(function(*arguments))
    start = time.monotonic()
    jax.block_until_ready(function(*arguments))
    once = max(time.monotonic() - start, 1e-6)
    calls, groups = math.ceil(_SECONDS / 5 / once), []
    # Processes that measure together have to make as many calls.
    calls = _largest(calls)
    for _ in range(5):
        start = time.monotonic()
        jax.block_until_ready([function(*arguments) for _ in range(calls)][-1])
        groups.append((time.monotonic() - start) / calls)
    return float(np.median(groups))


def _largest(number: int) -> int:
    from recursia import distributed

    return max(distributed.everyone(number))


def clean(value: Any) -> Any:
    """Returns a value without names of this user, of this machine and of folders."""
    if isinstance(value, dict):
        return {name: clean(each) for name, each in value.items()}
    if not isinstance(value, str):
        return value
    for private in _private():
        value = re.sub(rf"(?<![A-Za-z0-9]){re.escape(private)}(?![A-Za-z0-9])", "...", value)
    return re.sub(r"(?:~|(?<![\w.]))(?:/[^\s:,;='\"]+)+", "PATH", value)


def _private() -> Iterator[str]:
    """Yields the names that are left out, the longest first."""
    names = {socket.gethostname(), socket.gethostname().partition(".")[0], os.path.expanduser("~")}
    try:
        names.add(getpass.getuser())
    except (OSError, KeyError, ImportError):
        pass
    yield from sorted((name for name in names if len(name) > 1), key=len, reverse=True)


def render(found: Mapping[str, Any]) -> str:
    """Returns what was found as a table."""
    rows = [*found["versions"].items(), *found["devices"].items()]
    rows += list(found["environment"].items()) or [("environment", "nothing that matters is set")]
    rows += [("workdir", _workdir(found["workdir"]))] if "workdir" in found else []
    matmul, reduced = found["matmul"], found.get("all_reduce")
    peak = f", {matmul['share_of_peak']:.0%} of the peak" if "share_of_peak" in matmul else ""
    speed = f"{matmul['flops_per_second'] / 1e12:.3g} TFLOP/s"
    rows += [("matmul", f"{speed} ({matmul['dtype']}, {matmul['width']} wide){peak}")]
    if reduced:
        text = f"{1e3 * reduced['seconds']:.3g} ms for {reduced['bytes'] / 1e6:.0f} MB a device"
        rows += [("all-reduce", f"{text}, {reduced['bytes_per_second'] / 1e9:.3g} GB/s")]
    else:
        rows += [("all-reduce", "not measured: one device")]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _workdir(found: Mapping[str, Any]) -> str:
    if not found["ok"]:
        return f"cannot be written ({found['reason']})"
    made = "" if found["exists"] else "does not exist, but its folder "
    free = f", {found['free_bytes'] / 1e9:.0f} GB free" if "free_bytes" in found else ""
    return f"{made}can be written, 1 MB in {1e3 * found['seconds']:.1f} ms{free}"
