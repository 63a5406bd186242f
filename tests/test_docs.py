"""Every command that the documentation shows in a block of shell runs, in order."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from docs import combinations

ROOT = pathlib.Path(__file__).parent.parent
SYSTEMS = sorted((ROOT / "docs" / "systems").glob("*.md"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page):
    return re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_a_page_run(page, tmp_path):
    script = "set -eux\n" + "\n".join(blocks(page))
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    env = {**os.environ, "PATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **cache}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_usage_shows_every_verb():
    shown = "".join("".join(blocks(page)) for page in PAGES)
    for verb in ("train", "eval", "generate", "budget", "parity", "data prepare", "data inspect",
                 "convert recursive", "compile"):  # fmt: skip
        assert f"recursia {verb}" in shown, verb


def test_the_table_of_combinations_is_what_the_code_says():
    assert combinations.PAGE.read_text() == combinations.page()


def test_every_configuration_has_its_page():
    pages = {page.stem for page in (ROOT / "docs" / "systems").glob("*.md")}
    assert pages == {p.stem for p in (ROOT / "configs").glob("*.py")} - {"__init__", "base"}


@pytest.mark.parametrize("page", SYSTEMS, ids=lambda page: page.stem)
def test_a_page_of_a_system_has_its_parts(page):
    text = page.read_text()
    assert f"recursia train --config={page.stem}:tiny --workdir=" in text
    for part in ("arXiv", "Checked:", "Paper and code:"):
        assert part in text
