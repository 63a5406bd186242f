"""Every command and every Python program that the documentation shows runs, in order."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from docs import combinations
from recursia import presets
from tests.helpers import cluster

ROOT = pathlib.Path(__file__).parent.parent
SYSTEMS = sorted((ROOT / "docs" / "systems").glob("*.md"))
PAGES = sorted((ROOT / "docs").rglob("*.md"))
HERE = pathlib.Path(sys.executable).parent


def blocks(page):
    """Returns the blocks of shell and, as commands that run them, of Python."""
    found = re.findall(
        r"^```(sh|python)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL
    )
    as_command = "python - <<'END_OF_BLOCK'\n{}END_OF_BLOCK\n"
    return [text if kind == "sh" else as_command.format(text) for kind, text in found]


def run(commands, folder, path, **variables):
    """Runs the commands of a page, in order, in one shell, on one device.

    Pages share the compilation cache of the tests: many train the same small preset.
    """
    script = "set -eux\n" + "\n".join(commands)
    env = {**cluster.environment(1), **variables, "PATH": path}
    for name in ("VIRTUAL_ENV", "MAKEFLAGS", "MFLAGS"):  # of who runs the tests
        env.pop(name, None)
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_a_page_run(page, tmp_path):
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    run(blocks(page), tmp_path, os.pathsep.join([str(HERE), os.environ["PATH"]]))


@pytest.mark.slow
def test_the_readme_works_as_pasted_on_a_fresh_machine(tmp_path):
    """In a clone, with python3 and no recursia; the demo makes few steps.

    All but `make test`, which .ci/run runs in a clone of its own. Parity is shown on one of the
    files of golden arrays; tests/golden reads the others.
    """
    asked = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(tmp_path / "pip")]
    if subprocess.run([*asked, "argcomplete"], capture_output=True).returncode:
        pytest.skip("pip reaches no index")
    clone = tmp_path / "clone"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).split("\0"):
        if (ROOT / name).is_file() and (not name.endswith(".npz") or "lckv_cla" in name):
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    tools = tmp_path / "bin"
    tools.mkdir()
    base = pathlib.Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    (tools / "python3").write_text(f'#!/bin/sh\nexec "{base}" "$@"\n')
    (tools / "python3").chmod(0o755)
    kept = [place for place in os.environ["PATH"].split(os.pathsep) if place != str(HERE)]
    path = os.pathsep.join([str(tools), *kept])
    assert shutil.which("recursia", path=path) is None
    few = "--config.train.num_steps=4 --config.eval.every_steps=0 --config.eval.num_batches=1"
    commands, last = blocks(ROOT / "README.md"), "make test\n"
    assert last in commands and last in (ROOT / ".ci" / "run").read_text()
    commands.remove(last)
    run(commands, clone, path, DEMO_FLAGS=few, DEMO_BATCHES="1", PIP_NO_COMPILE="1")
    assert (clone / "runs/tiny/config.json").exists()


def test_usage_shows_every_verb():
    shown = "".join("".join(blocks(page)) for page in [ROOT / "README.md", *PAGES])
    for verb in ("train", "eval", "generate", "report", "budget", "parity", "laws", "data prepare",
                 "data inspect", "data tasks", "data facts", "coordinates", "convert fold",
                 "convert recursive", "convert huggingface", "convert export",
                 "compile", "presets", "fields", "replay", "ckpt ls", "ckpt verify",
                 "launch", "doctor", "sweep", "sweep status", "sweep resume",
                 "sweep results", "sweep report"):  # fmt: skip
        assert f"recursia {verb}" in shown, verb


def test_the_table_of_combinations_is_what_the_code_says():
    assert combinations.PAGE.read_text() == combinations.page()


def test_every_configuration_has_its_page():
    pages = {page.stem for page in (ROOT / "docs" / "systems").glob("*.md")}
    others = {"__init__", "base", "blocks"}
    assert pages == {p.stem for p in (ROOT / "configs").glob("*.py")} - others


def test_the_table_of_systems_says_what_each_was_checked_against():
    table = re.findall(r"^\| .* \| `(\w+):`.* \| (.*) \|$", (ROOT / "README.md").read_text(), re.M)
    assert dict(table) == {page.stem: presets.checked_against(page.stem) for page in SYSTEMS}
    assert all(said for _, said in table)


@pytest.mark.parametrize("page", SYSTEMS, ids=lambda page: page.stem)
def test_a_page_of_a_system_has_its_parts(page):
    text = page.read_text()
    assert f"recursia train --config={page.stem}:tiny --workdir=" in text
    for part in ("arXiv", "Checked:", "Paper and code:"):
        assert part in text
