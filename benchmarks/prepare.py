r"""What `recursia data prepare` takes beside the tokenizers library alone, and its memory.

Turns of the library (`encode_batch` over the documents, read before) take turns with turns of
prepare (reading, choosing the split, cutting, encoding, writing and joining), over the same
documents, tokenizer and cores; ratios are of the bytes of text a second within a round, so that
above 1 prepare is faster. Where other programs use the machine, the ratio of processor time says
more. `--memory` prepares a text of so many megabytes as bytes, one of a sixteenth with the
tokenizer, and for each one an eighth as long, and gives their largest resident memory (of Linux).

  python benchmarks/prepare.py --out=benchmarks/results/prepare_cpu.json
  python benchmarks/prepare.py --input=TEXTS.jsonl --tokenizer=FOLDER --rounds=7 --memory=1024
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from recursia.data import named, prepare
from recursia.data.tokenizer import BPETokenizer, from_spec
from recursia.data.workers import cores

_LINE = "A line of {}, which a text repeats with another number.\n"
# What getrusage says of a process counts the memory of the one that started it.
_MEASURED = """
import json, pathlib, re, sys, time
from recursia import cli
assert cli.main(sys.argv[1:]) == 0
status = pathlib.Path("/proc/self/status").read_text()
print(json.dumps([time.process_time(), int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1])]))
"""


def turn(call: Callable[[], Any]) -> tuple[float, float]:
    """Returns the seconds of a call: by the clock, and of all cores and ended workers."""
    used = lambda: sum(os.times()[:4])
    start, before = time.perf_counter(), used()
    call()
    return time.perf_counter() - start, used() - before


def measure(inputs: list[str], spec: str, rounds: int) -> dict[str, Any]:
    """Returns bytes, seconds and ratios of turns of the library and of prepare."""
    texts = [
        document.text
        for each in named.expand(inputs)
        for document in each.documents(on_error="stop")
    ]
    tokenizer = from_spec(spec, lambda: iter(()))
    assert isinstance(tokenizer, BPETokenizer)
    options = prepare.Options(tokenizer=spec)
    num_bytes = sum(len(text.encode()) for text in texts)

    def library() -> None:
        tokenizer._library.encode_batch(texts, add_special_tokens=False)

    def whole() -> None:
        with tempfile.TemporaryDirectory() as folder:
            prepare.prepare(inputs, f"{folder}/out", options)

    turns: dict[str, list[tuple[float, float]]] = {"library": [], "prepare": []}
    for number in range(rounds):
        for name, call in (("library", library), ("prepare", whole))[:: 1 if number % 2 else -1]:
            turns[name].append(turn(call))
            print(name, *(f"{seconds:.2f} s" for seconds in turns[name][-1]), file=sys.stderr)
    pairs = list(zip(turns["library"], turns["prepare"], strict=True))
    return {
        "tokenizer": tokenizer.name,
        "documents": len(texts),
        "bytes": num_bytes,
        "megabytes_per_second": {
            name: num_bytes / 1e6 / statistics.median(seconds for seconds, _ in turns[name])
            for name in turns
        },
        "ratio": quartiles([theirs[0] / ours[0] for theirs, ours in pairs]),
        "ratio_of_processor_time": quartiles([theirs[1] / ours[1] for theirs, ours in pairs]),
        "seconds": {name: [round(clock, 3) for clock, _ in turns[name]] for name in turns},
    }


def quartiles(values: list[float]) -> dict[str, float]:
    """Returns the median and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def memory(spec: str, megabytes: int) -> list[dict[str, Any]]:
    """Returns the seconds and the largest resident memory of preparing texts of two lengths."""
    found = []
    for size in (megabytes // 8, megabytes):
        with tempfile.TemporaryDirectory() as folder:
            with open(f"{folder}/text.txt", "w") as file:
                number = 0
                while file.tell() < size * 1e6:
                    lines = range(number, number := number + 20_000)
                    file.writelines(_LINE.format(line) for line in lines)
            arguments = ["--input", f"{folder}/text.txt", f"--output={folder}/out"]
            arguments += [f"--tokenizer={spec}", "--num_workers=1"]
            start = time.perf_counter()
            command = [sys.executable, "-c", _MEASURED, "data", "prepare", *arguments]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            seconds = time.perf_counter() - start
        used, peak = json.loads(done.stdout.splitlines()[-1])
        row = {"tokenizer": spec, "megabytes": size, "seconds": round(seconds, 1)}
        row["processor_seconds"] = round(used, 1)
        found.append(row | {"peak_megabytes": round(peak * 1024 / 1e6)})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input", nargs="+", default=["bundled:validation"])
    parser.add_argument("--tokenizer", help="a folder or tokenizer.json; default: 4096 ids learned")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", type=int, help="megabytes")
    parser.add_argument("--out", type=pathlib.Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spec = given.tokenizer
        if spec is None:
            spec = f"{folder}/learned"
            prepare.prepare(["bundled:validation"], spec, prepare.Options(tokenizer="bpe:4096"))
        row = measure(given.input, spec, given.rounds)
        sizes = []
        if given.memory:
            sizes = [*memory(spec, given.memory // 16), *memory("byte", given.memory)]
    for each in sizes:
        each["tokenizer"] = "byte" if each["tokenizer"] == "byte" else row["tokenizer"]
    versions = {name: importlib.metadata.version(name) for name in ("tokenizers", "numpy")}
    result = {
        "command": " ".join(["python", *map(_shown, sys.argv)]),
        "machine": f"{platform.machine()}, {cores()} cores",
        "python": platform.python_version(),
        "versions": versions,
        "load": [round(each, 1) for each in os.getloadavg()],
        **row,
        "memory": sizes,
    }
    text = json.dumps(result, indent=2) + "\n"
    print(text) if given.out is None else given.out.write_text(text)


def _shown(argument: str) -> str:
    """Returns an argument without the folders of this machine."""
    return pathlib.PurePath(argument).name if argument.startswith("/") else argument


if __name__ == "__main__":
    main()
