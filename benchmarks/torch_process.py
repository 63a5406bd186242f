"""A PyTorch model that is timed in a process of its own, in turns with ours.

Threads of two libraries in one process compete, and PyTorch's products may be slow for a reason
that has nothing to do with the model: on processors of other makers Intel's matrix library takes a
slow path, unless a function that says whether the processor is Intel's returns 1. So the process
says which library PyTorch uses and the rate of a product, and can be started with that function
replaced (it is preloaded, compiled by `cc`).
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from recursia import budget, config, settings
from recursia.errors import UserError

INTEL = "int mkl_serv_intel_cpu_true(void) { return 1; }\n"
PRODUCT = 2048, 1024, 1024  # the sizes of the product that is timed


class TorchProcess:
    """A process with the PyTorch model of a run.

    Attributes:
      told: `library`, `gflops` of a product, `torch` (version), and `loss` and `gradient_norm` of
        the first step.
    """

    def __init__(
        self,
        run: settings.Run,
        weights: Any,
        rows: dict[str, np.ndarray],
        device: str,
        is_replaced: bool,
    ):
        """Starts the process, which makes its first step.

        Args:
          run: settings of the run.
          weights: ours, to start from.
          rows: the batch of every step.
          device: "cuda" or "cpu".
          is_replaced: whether Intel's library is told that the processor is Intel's.

        Raises:
          UserError: with what it wrote, if it ended.
        """
        self.folder = tempfile.TemporaryDirectory(prefix="torch-")
        place = pathlib.Path(self.folder.name)
        (place / config.RECORD).write_text(json.dumps(config.to_dict(run)))
        np.savez(place / "weights.npz", **flat(weights))
        np.savez(place / "rows.npz", **rows)
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        if is_replaced:
            environment["LD_PRELOAD"] = str(replaced(place))
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(place), device],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.told = self._ask(None)

    def turn(self, steps: int) -> float:
        """Returns the seconds of so many steps, by the clock of the process."""
        return self._ask(steps)["seconds"]

    def close(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()
        self.folder.cleanup()

    def _ask(self, steps: int | None) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        if steps is not None:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"--torch: its process ended with {self.process.wait()}; see above")
        return json.loads(line)


def flat(tree: Any, name: str = "") -> dict[str, np.ndarray]:
    """Returns the arrays of a tree of dicts by their paths."""
    if not isinstance(tree, dict):
        return {name: np.asarray(tree)}
    parts = (flat(value, f"{name}/{key}".lstrip("/")) for key, value in tree.items())
    return {path: array for part in parts for path, array in part.items()}


def deep(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Inverts `flat`; empty parts are missing."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *parts, last = path.split("/")
        place = tree
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = array
    return tree


def may_be_slow() -> bool:
    """Returns whether Intel's library would take its slow path on this processor."""
    try:
        told = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "AuthenticAMD" in told


def replaced(folder: pathlib.Path) -> pathlib.Path:
    """Compiles the library that says that the processor is Intel's.

    Raises:
      UserError: if there is no compiler.
    """
    source, library = folder / "intel.c", folder / "intel.so"
    source.write_text(INTEL)
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"--torch: needs a C compiler, cc, for a fair rate: {error}") from None
    return library


def rate(product: Any) -> float:
    """Returns the best GFLOP/s of ten runs of a product of sizes `PRODUCT`."""
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return 2e-9 * float(np.prod(PRODUCT)) / min(seconds)


def main() -> None:
    """Serves turns: reads a number of steps from each line and writes the seconds."""
    import torch
    from llama_torch import make_step

    place, device = pathlib.Path(sys.argv[1]), sys.argv[2]
    run = config.recorded(place / config.RECORD)
    with np.load(place / "weights.npz") as weights, np.load(place / "rows.npz") as rows:
        step = make_step(run, budget.vocab_size(run), deep(dict(weights)), device)
        batch = [torch.tensor(rows[n], device=device).long() for n in ("tokens", "targets")]
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    loss, norm = map(float, step(*batch))
    m, k, n = PRODUCT
    dtype = getattr(torch, run.model.dtype)
    left, right = (torch.randn(shape, dtype=dtype, device=device) for shape in ((m, k), (k, n)))
    told = torch.__config__.show()
    library = next((n for n in ("mkl", "openblas", "accelerate") if f"BLAS_INFO={n}" in told), "")
    first = {
        "library": "cublas" if device == "cuda" else library or "not known",
        "gflops": rate(lambda: (left @ right, wait())),
        "torch": torch.__version__,
        "loss": loss,
        "gradient_norm": norm,
    }
    print(json.dumps(first), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step(*batch)
        wait()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main()
