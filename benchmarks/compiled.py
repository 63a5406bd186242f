r"""Memory, traffic and collectives of compiled training steps, with no accelerator.

The programs are those of XLA's compiler for one H100: needs the extra `cuda`. `docs/pods.py` has
TPU slices. The numbers are exact for one version of XLA; seconds are of this machine.

  python benchmarks/compiled.py --out=benchmarks/results/compiled.json
"""

import argparse
import json
import pathlib
import platform
import sys
from typing import Any

import jax
import jaxlib

from recursia import config, topology
from recursia.preflight import collectives, program, traffic

# Preset, machine, and fields that differ from the preset.
PROGRAMS: dict[str, tuple[str, str, dict[str, str]]] = {
    "vanilla:360m": ("vanilla:360m", "h100:1", {"train.num_microbatches": "8"}),
    "recursive:360m": ("recursive:360m", "h100:1", {"train.num_microbatches": "8"}),
    "mor:360m": ("mor:360m", "h100:1", {"train.num_microbatches": "8"}),
    "moeut:244m": ("moeut:244m", "h100:1", {}),
    "sut:244m": ("sut:244m", "h100:1", {}),
}


def measure(name: str) -> dict[str, Any]:
    """Returns the compiler's numbers of one of `PROGRAMS`, per device, in bytes."""
    preset, machine, fields = PROGRAMS[name]
    run = config.load(preset, fields)
    made = program.train_step(program.make_trainer(run, topology.devices(machine)), 0)
    moved = collectives.collectives(made.program)
    return {
        "machine": machine,
        "fields": fields,
        "dtype": run.model.dtype,
        "batch_size": run.train.batch_size,
        "seq_len": run.train.seq_len,
        "temporaries": made.memory.temporaries,
        "total": made.memory.total,
        "hbm_traffic": traffic.hbm_bytes(made.program),
        "collective_bytes": sum(each.bytes * each.executions for each in moved),
        "collectives": len(moved),
        "compile_seconds": round(made.seconds, 1),
    }


def main() -> None:
    """Compiles the chosen programs, and adds them to the file as each is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--out", type=pathlib.Path, required=True)
    given = parser.parse_args()
    found = json.loads(given.out.read_text()) if given.out.exists() else {"programs": {}}
    versions = {"jax": jax.__version__, "jaxlib": jaxlib.__version__}
    how = {"command": " ".join(["python", *sys.argv]), "python": platform.python_version()}
    for name in given.only:
        found |= how | versions
        found["programs"][name] = measure(name)
        print(name, found["programs"][name], flush=True)
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
