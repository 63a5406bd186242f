"""Training by several processes of one host, connected over loopback."""

import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax

from recursia import cli, sharding

STEPS = 4
SECTIONS = {
    "train": {"num_steps": STEPS, "batch_size": 4},
    "checkpoint": {"every_steps": 2},
    "eval": {"every_steps": 3, "prompts": ["red"], "sample_tokens": 4},
    "mesh": {"data": 1, "fsdp": -1},
    "log": {"sinks": []},
}
LIMIT_SECONDS = 600  # of one run, which takes 20 on an idle host
# Sources of a process, one after the other: the last starts the command.
START = "import sys\nfrom recursia import cli\nsys.exit(cli.main(sys.argv[1:]))\n"
# A step takes long enough for a signal to come in time.
SLOWLY = """
import time
from recursia.train.step import Trainer

def put(self, batch, real=Trainer.put):
    time.sleep(0.25)
    return real(self, batch)

Trainer.put = put
"""


@dataclasses.dataclass
class Process:
    """One process of a run."""

    popen: subprocess.Popen
    output: pathlib.Path

    @property
    def code(self) -> int | None:
        return self.popen.poll()

    @property
    def said(self) -> list[str]:
        return self.output.read_text(errors="replace").splitlines()


def flags(count: int, index: int, port: int) -> list[str]:
    by_hand = (f"--coordinator=127.0.0.1:{port}", f"--num_processes={count}")
    return [*by_hand, f"--process_id={index}"]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(devices: int) -> dict[str, str]:
    """Returns the environment of a process that presents a number of CPU devices."""
    counted = "--xla_force_host_platform_device_count="
    given = re.sub(rf"{counted}\d+", "", os.environ.get("XLA_FLAGS", ""))
    return {**os.environ, "XLA_FLAGS": f"{given} {counted}{devices}"}


def start(
    place: pathlib.Path,
    arguments: list[str],
    *,
    count: int,
    devices: int = 1,
    scripts: dict[int, str] | None = None,
    only: tuple[int, ...] | None = None,
) -> list[Process]:
    """Starts `recursia ARGUMENTS` as `count` processes of one run.

    Args:
      place: folder for what the processes print.
      arguments: the command's arguments.
      count: number of processes.
      devices: CPU devices of each process.
      scripts: Python source, by process, that replaces the command with the same arguments.
      only: the processes to start, if not all of them.
    """
    place.mkdir(parents=True, exist_ok=True)
    port, made = free_port(), []
    for index in range(count) if only is None else only:
        script = (scripts or {}).get(index)
        program = ["-c", script] if script else ["-m", "recursia"]
        command = [sys.executable, *program, *arguments]
        command += flags(count, index, port) if count > 1 else []
        output = place / f"output{len(list(place.glob('output*')))}"
        with output.open("w") as file:
            popen = subprocess.Popen(command, stdout=file, stderr=file, env=environment(devices))
        made.append(Process(popen, output))
    return made


def finish(processes: list[Process], seconds: float = LIMIT_SECONDS) -> list[int]:
    """Returns the exit codes; processes that exceed the time are killed, and the test fails."""
    until = time.monotonic() + seconds
    try:
        for process in processes:
            process.popen.wait(max(until - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        said = "\n".join("\n".join(process.said[-20:]) for process in processes)
        raise AssertionError(f"still running after {seconds} s:\n{said}") from None
    finally:
        for process in processes:
            if process.code is None:
                process.popen.send_signal(signal.SIGKILL)
                process.popen.wait()
    return [process.popen.returncode for process in processes]


def run(place: pathlib.Path, arguments: list[str], **how) -> list[Process]:
    """Runs the processes to their end; every exit code must be 0."""
    processes = start(place, arguments, **how)
    codes = finish(processes)
    assert codes == [0] * len(codes), "\n".join(processes[codes.index(max(codes))].said[-30:])
    return processes


def train(folder, workdir, *overrides, depth="fixed"):
    return ["train", f"--config={folder / depth}.py", f"--workdir={workdir}", *overrides]


def alone(monkeypatch, devices, arguments):
    """Runs a command in this process, on the first of its devices."""
    real = sharding.make_mesh
    some = lambda mesh: real(mesh, jax.devices()[:devices])
    with monkeypatch.context() as patch:
        patch.setattr(sharding, "make_mesh", some)
        assert cli.main(arguments) == 0
