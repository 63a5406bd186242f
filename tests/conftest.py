"""Every test runs on a CPU that presents itself as eight devices.

Compiling takes most of the time. Programs are therefore compiled without most optimisations, in a
quarter of the time, unless `JAX_DISABLE_MOST_OPTIMIZATIONS=0`; workers share one compilation cache.

The quick tier runs every value of each parameter of a test, and the exhaustive tier, which CI
leaves out, the remaining combinations. In the quick tier, tests of kernels run every pair of values
and those of preflight every combination. A test marked `few(n)` has n of its cases in the quick
tier, from all over their list, and the others in the slow one.
"""

import collections
import gc
import importlib.metadata
import itertools
import os
import shutil
import tempfile
import zlib

PROGRAMS = "JAX_COMPILATION_CACHE_DIR"

FLAGS = [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_parallel_codegen_split_count=1",  # small programs gain nothing from parts
]
# A flag that XLA does not know ends the process. Where it knows this one, compiling takes half.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(FLAGS)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
OURS = None if PROGRAMS in os.environ else tempfile.mkdtemp(prefix="recursia-programs-")
os.environ.setdefault(PROGRAMS, OURS or "")


import jax  # noqa: E402 - reads what is set above
import pytest  # noqa: E402

pytest.register_assert_rewrite("tests.helpers")

from tests.helpers.refusals import assert_one_line  # noqa: E402 - whose assertions are rewritten


def pytest_unconfigure():
    """Deletes the compilation cache in the process that created it; workers inherit its path."""
    if OURS:
        shutil.rmtree(OURS, ignore_errors=True)


EVERY_PAIR, EVERY_COMBINATION = "kernels", "preflight"  # folders


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks combinations of parameters by what the others already cover."""
    tests, few = collections.defaultdict(dict), collections.defaultdict(list)
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        if "exhaustive" in marks:
            item.add_marker(pytest.mark.slow)
        elif (
            not marks & {"slow", "gpu_compile"}
            and item.path.parent.name != EVERY_COMBINATION
            and hasattr(item, "callspec")
        ):
            values = sorted((name, repr(value)) for name, value in item.callspec.params.items())
            many = len(values) > 1 and item.path.parent.name == EVERY_PAIR
            met = set(itertools.combinations(values, 1 + many))
            tests[item.nodeid.partition("[")[0]][item] = met
    for values in tests.values():
        for item in values.keys() - covering(values):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.exhaustive)
    for item in items:
        if (mark := item.get_closest_marker("few")) and not item.get_closest_marker("slow"):
            few[item.nodeid.partition("[")[0], mark.args[0]].append(item)
    for (_, count), cases in few.items():
        quick = {len(cases) * place // count for place in range(count)}
        for place in set(range(len(cases))) - quick:
            cases[place].add_marker(pytest.mark.slow)


def covering(sets):
    """Returns few of the items of these sets, with all that the sets hold."""
    unmet, chosen = set().union(*sets.values()), set()
    while unmet:
        richest = max(sets, key=lambda item: len(unmet & sets[item]))
        unmet -= sets[richest]
        chosen.add(richest)
    return chosen


def pytest_collection_finish():
    """Collects garbage seldom, and never modules and tests: this saves a twentieth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@pytest.fixture(scope="module", autouse=True)
def programs_are_dropped():
    """Drops a module's compiled programs: thousands of them in one process crash XLA."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session", params=("gs", pytest.param("s3", marks=pytest.mark.exhaustive)))
def emulator(request):
    """Starts a server of buckets for the session, to which libraries here are led."""
    from tests.helpers import buckets

    with buckets.emulated(request.param) as variables, pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield request.param


@pytest.fixture
def bucket(emulator, request):
    """Returns a place in an emulated bucket, for this test alone."""
    from tests.helpers import buckets

    return f"{emulator}://{buckets.NAME}/{zlib.crc32(request.node.nodeid.encode()):08x}"


@pytest.fixture
def command(capsys):
    """Runs `recursia ARGUMENTS` here, which must end with a code; returns its two streams."""
    from recursia import cli  # no sooner: the hook that checks shapes is not there yet

    def run(*arguments, code=0):
        capsys.readouterr()
        got = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert got == code, err
        return out, err

    return run


@pytest.fixture
def refused_command(command):
    """Runs a command that must end with a code, no output and one line that names every part."""

    def run(*arguments, parts=(), code=2):
        out, err = command(*arguments, code=code)
        assert out == ""
        assert_one_line(err, *parts)
        return err

    return run
