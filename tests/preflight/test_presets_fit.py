"""Every preset fits the machine that it names. `make test-presets` compiles them all: hours."""

import functools
import os

import pytest

from recursia import config, topology
from recursia.preflight import program, report
from tests.helpers.presets import PRESETS

# One of each kind of block and loop that takes no minutes; test_compile.py has smaller ones.
CHOSEN = ("vanilla:tiny", "recursive:tiny", "moeut:tiny")
COMPILED = PRESETS if os.environ.get("RECURSIA_PRESETS") == "all" else CHOSEN

devices = functools.cache(topology.devices)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_a_machine_over_which_its_batch_and_widths_divide(name):
    run = config.load(name, {})
    assert program.make_trainer(run, devices(run.topology)).mesh.size == len(devices(run.topology))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_preset_fits_the_machine_it_is_meant_for(name):
    run = config.load(name, {})
    said = report.examine(run, run.topology, devices(run.topology))
    assert said["fits"], said.get("advice")
