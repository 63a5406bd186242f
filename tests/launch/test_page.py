"""The page on launching shows what its commands print."""

import pathlib
import re
import shlex

import pytest

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "launching.md"
SHOWN = re.findall(r"```sh\n(recursia [^`]*)\n```\n\n```\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_page_has_the_dry_runs():
    assert len(SHOWN) == 3
    for part in ("mor:1.7b", "v5p:4x8x8", "moeut:1b", "h100:8x2"):
        assert any(part in typed for typed, _ in SHOWN)


@pytest.mark.parametrize(("typed", "printed"), SHOWN, ids=["v5e-256", "v5p-512", "h100"])
def test_a_command_prints_what_the_page_shows(command, typed, printed):
    assert command(*shlex.split(typed.replace("\\\n", ""))[1:])[0] == printed
