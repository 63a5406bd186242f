"""Compiled training steps hold and move no more bytes than those that were recorded."""

import json
import pathlib

import jaxlib
import pytest

from benchmarks import compiled

FOUND = json.loads(
    (pathlib.Path(compiled.__file__).parent / "results" / "compiled.json").read_text()
)


@pytest.mark.gpu_compile
@pytest.mark.skipif(jaxlib.__version__ != FOUND["jaxlib"], reason="numbers of another XLA")
@pytest.mark.parametrize("name", compiled.PROGRAMS)
def test_a_step_is_no_larger_than_recorded(name):
    made, before = compiled.measure(name), FOUND["programs"][name]
    for number in ("temporaries", "total", "hbm_traffic", "collective_bytes"):
        assert made[number] <= before[number]
