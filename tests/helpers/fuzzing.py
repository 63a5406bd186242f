"""Reads files over and over, led by which branches of their readers are taken.

  python -m tests.helpers.fuzzing FOLDER RUNS CASE...

What libFuzzer says of a case is in FOLDER/CASE.log; its exit code is printed.
"""

import os
import pathlib
import sys

import atheris

with atheris.instrument_imports(include=["recursia"]):
    from tests.helpers.damage import reads
    from tests.helpers.readers import CASES

LIMITS = ("-max_len=4096", "-rss_limit_mb=3000", "-timeout=60", "-seed=1")


def fuzz(name: str, folder: pathlib.Path, runs: str) -> None:
    """Fuzzes a case, and ends this process."""
    log = os.open(folder.with_name(f"{name}.log"), os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    (seeds := folder / "seeds").mkdir(parents=True)
    (inner := folder / "case").mkdir()
    case = CASES[name](inner)
    (seeds / "whole").write_bytes(case.path.read_bytes())

    def one(raw: bytes) -> None:
        case.path.write_bytes(raw)
        reads(case.read)

    words = [sys.argv[0], f"-runs={runs}", *LIMITS, f"-artifact_prefix={folder}/", str(seeds)]
    atheris.Setup(words, one)
    atheris.Fuzz()


def main() -> None:
    place, runs, *names = sys.argv[1:]
    for name in names:
        if not (child := os.fork()):
            fuzz(name, pathlib.Path(place) / name, runs)
        print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
