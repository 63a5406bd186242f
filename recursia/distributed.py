"""Several processes as one run: how they join, agree and exit.

jax finds the other processes under SLURM, Open MPI and Kubernetes and on TPUs; otherwise flags of
the command line name them. If one process fails alone, the others would wait for it in a
collective. Code that may fail in one process therefore runs in `together`; after any other error
the process exits at once, and the coordinator ends the others.
"""

import contextlib
import dataclasses
import importlib.util
import os
import pathlib
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from recursia import stall
from recursia.errors import ConfigError, Diverged, Lost, Preempted, UserError

JOIN_SECONDS = 300  # time in which all processes must start
# Time without a heartbeat after which the service aborts all processes, with a stack of its own;
# `stall` comes before it.
HEARTBEAT_SECONDS = 2000
GRACE_SECONDS = 5
# What backends say of a collective whose other side is gone or silent.
_LOST = re.compile(
    "gloo|closed by peer|Connection reset|Connection refused|timed out|UNAVAILABLE|"
    "DEADLINE_EXCEEDED|ncclRemoteError|coordination service",
    re.IGNORECASE,
)
SLURM = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")
BY_HAND = "--coordinator=HOST:PORT --num_processes=N --process_id=I"


@dataclasses.dataclass(frozen=True)
class Flags:
    """The flags of the command line for a run of several processes.

    Attributes:
      coordinator: HOST:PORT at which process 0 listens for the others.
      num_processes: of the run. Without the other flags it can only be 1, which makes a run of one
        process whatever the environment.
      process_id: index of this process, from 0.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self):
        given = dataclasses.asdict(self)
        missing = [f"--{name}" for name, value in given.items() if value is None]
        count, index = self.num_processes, self.process_id
        if 0 < len(missing) < 3 and not (len(missing) == 2 and count == 1):
            raise ConfigError(f"{', '.join(missing)}: missing beside the others; give {BY_HAND}")
        if count is not None and count < 1:
            raise ConfigError(f"--num_processes={count}: takes at least 1")
        if count is not None and index is not None and not 0 <= index < count:
            raise ConfigError(f"--process_id={index}: takes 0 to {count - 1} of {count} processes")
        if self.coordinator is not None and not _port(self.coordinator):
            raise ConfigError(
                f"--coordinator={self.coordinator}: takes HOST:PORT, with a port from 1 to 65535"
            )


def _port(address: str) -> int:
    """Returns the port of HOST:PORT, or 0 if the address is invalid."""
    match = re.fullmatch(r"(?:[^:\s]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", address)
    return int(match[1]) if match and int(match[1]) < 65536 else 0


@contextlib.contextmanager
def joined(flags: Flags, *, is_preemptible: bool, stacks: pathlib.Path) -> Iterator[None]:
    """Joins the run's other processes, if there are any, while its context is open.

    Args:
      flags: of the command line.
      is_preemptible: whether jax's preemption service handles SIGTERM, for `recursia.train.stop`.
      stacks: folder for the stacks of a process that finds the others standing still.

    Raises:
      ConfigError: if the other processes cannot be found.
    """
    by_hand = flags.coordinator is not None
    surroundings = None if by_hand or flags.num_processes == 1 else _surroundings()
    if not by_hand and surroundings is None:
        yield
        return
    jax.config.update("jax_enable_preemption_service", is_preemptible)
    _initialize(flags, surroundings)
    try:
        watch = stall.watching(stacks, jax.process_index())
        with contextlib.nullcontext() if is_alone() else watch:
            yield
    except (Diverged, Preempted):  # all processes raise these at the same step
        jax.distributed.shutdown()
        raise
    except BaseException as error:
        if not is_alone():
            _leave(error)
        jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()


def _surroundings() -> str | None:
    """Returns the name of the launcher, from environment variables; None for a single process.

    Raises:
      ConfigError: if jax cannot find the other processes of that launcher.
    """
    env = os.environ
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in env:
            raise ConfigError(
                f"Open MPI: one of {env['OMPI_COMM_WORLD_SIZE']} processes, but this version of it "
                f"does not say where the first is; give {BY_HAND}"
            )
        return "Open MPI"
    if all(f"SLURM_{name}" in env for name in SLURM) and int(env["SLURM_NTASKS"]) > 1:
        return "SLURM"
    # jax sets the platform if there are TPU chips; a metadata server names a VM's other processes.
    named = {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"} & env.keys()
    platforms = jax.config.jax_platforms or ""  # pyright: ignore[reportAttributeAccessIssue]
    if "tpu" in platforms and (named or "TPU_SKIP_MDS_QUERY" not in env):
        return "TPU"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= env.keys():
        if importlib.util.find_spec("kubernetes") is None:
            raise ConfigError(
                f"Kubernetes: pod {env['JOB_COMPLETION_INDEX']} of an indexed Job, but the package "
                "that finds the others is missing; pip install 'jax[k8s]', or give "
                f"{BY_HAND}, or --num_processes=1 for a run of its own"
            )
        return "Kubernetes"
    return None


def _initialize(flags: Flags, surroundings: str | None) -> None:
    where = dataclasses.asdict(flags) if surroundings is None else {}
    address = where.pop("coordinator", None)
    if address is not None:
        # Detection is off: under SLURM it would leave one device visible.
        where |= {"coordinator_address": address, "cluster_detection_method": "deactivate"}
        if address.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]"):
            where["coordinator_bind_address"] = address  # by default it listens on every interface
    through = jax.config.jax_cpu_collectives_implementation  # pyright: ignore[reportAttributeAccessIssue]
    if through is None:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # If a process is missing, jax aborts with a stack trace; this message comes earlier.
    watch = threading.Timer(JOIN_SECONDS, _give_up, (flags, surroundings))
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            **where,
            initialization_timeout=JOIN_SECONDS + 30,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = "" if surroundings is None else f"; give {BY_HAND}, or --num_processes=1 for one"
        raise ConfigError(
            f"{surroundings or address}: cannot join the other processes ({reason}){remedy}"
        ) from None
    finally:
        watch.cancel()


def _give_up(flags: Flags, surroundings: str | None) -> None:
    message = (
        f"recursia: {surroundings}: not all processes came in {JOIN_SECONDS} s; see their output"
    )
    if flags.coordinator is not None and surroundings is None:
        host, _, port = flags.coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
            answers = "process 0 listens, but another process is missing; start all of them"
        except OSError:
            answers = "nothing listens there; start process 0, and open its port to the others"
        message = (
            f"recursia: --coordinator={flags.coordinator}: process {flags.process_id} of "
            f"{flags.num_processes} waited {JOIN_SECONDS} s: {answers}"
        )
    _exit(message + "\n", ConfigError.exit_code)


def _leave(error: BaseException) -> None:
    """Exits this process at once, because an orderly shutdown would wait for the others."""
    if is_first():  # it is the coordinator; others that fail alike print their errors first
        time.sleep(GRACE_SECONDS)
    who = f"recursia: process {jax.process_index()}"
    if hasattr(error, "exit_code"):  # a user's mistake, or a signal before the first step
        _exit(f"{who}: {error}\n", getattr(error, "exit_code", 1))
    if isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
        reason = str(error).splitlines()[0][:200]
        message = (
            f"{who}: another process is lost or stands still ({reason}); see its output, and run "
            "the same command to resume\n"
        )
        _exit(message, Lost.exit_code)
    _exit("".join(traceback.format_exception(error)), 1)


def _exit(message: str, code: int) -> None:
    sys.stdout.flush()
    sys.stderr.write(message)
    sys.stderr.flush()
    os._exit(code)


def is_alone() -> bool:
    """Returns whether the run has one process."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_first() -> bool:
    """Returns whether this is process 0, which writes files and messages for the run."""
    return is_alone() or jax.process_index() == 0


def everyone(number: int) -> list[int]:
    """Returns every process's number, below 2^31, by process; all processes must call it."""
    if is_alone():
        return [number]
    with stall.waiting(stall.MEETING, stall.FIRST_SECONDS):
        return np.ravel(multihost_utils.process_allgather(np.int32(number))).tolist()


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Waits for all processes at the end of a block; an error in one raises in all.

    The block must not wait for other processes.

    Raises:
      UserError: in the processes that did not fail, with the exit code of one that did.
    """
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    if (error := agreed(failure)) is not None:
        if not is_alone():
            jax.distributed.shutdown()  # all processes reach this line
        raise error


def agreed(failure: Exception | None) -> Exception | None:
    """Returns what every process raises if one has failed; all processes must call it.

    Args:
      failure: of this process.

    Returns:
      The failure; or where another process failed, an error with its exit code.
    """
    codes = everyone(0 if failure is None else getattr(failure, "exit_code", 1))
    for index, code in enumerate(codes):
        if code and failure is None:
            failure = UserError(f"process {index} could not go on; see its output")
            failure.exit_code = code
    return failure


def check_same(what: str, digest: str) -> None:
    """Checks that a value is equal in all processes.

    Args:
      what: name of the value, for the message.
      digest: of the value, in hex.

    Raises:
      ConfigError: in the processes whose value differs from the first one's.
    """
    ours = int(digest[:7], 16)
    first = everyone(ours)[0]
    with together():
        if ours != first:
            raise ConfigError(f"{what}: not that of process 0; give all processes the same")


def from_first(value: int) -> int:
    """Returns the value of the first process; all processes must call it."""
    return everyone(value)[0]
