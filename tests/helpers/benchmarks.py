"""Scripts of `benchmarks`, which is no package, and the results that they wrote."""

import importlib.util
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[2]


def benchmark(name):
    """Returns the module of a benchmark, which may import others, as Python runs a script."""
    if (folder := str(ROOT / "benchmarks")) not in sys.path:
        sys.path.append(folder)
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def result(name, device="_cpu"):
    """Returns what a benchmark wrote."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}{device}.json").read_text())


def page(name):
    """Returns a page of the documentation."""
    return (ROOT / "docs" / f"{name}.md").read_text()
