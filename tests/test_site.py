"""The documentation as a site: generated pages, links, examples in docstrings, and its build."""

import doctest
import pathlib
import re
import subprocess
import sys

import pytest

import recursia
from docs import commands, configs
from recursia import cli, laws

DOCS = pathlib.Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BESIDE = [DOCS.parent / "README.md", DOCS.parent / "corpus" / "README.md"]
LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("written", [commands, configs], ids=["commands", "configs"])
def test_a_generated_page_is_what_the_code_says(written):
    assert written.PAGE.read_text() == written.page(), f"run python -m {written.__name__}"


def prose(page):
    """Returns a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """Returns the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in kept}


def broken(page):
    """Yields the links of a page that lead to no file, or to no heading of it."""
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if "://" in link or link.startswith("mailto:"):
            continue
        if not target.exists():
            yield link
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            yield link


@pytest.mark.parametrize("page", [*PAGES, *BESIDE], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    assert list(broken(page)) == []


def test_a_link_that_leads_nowhere_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One thing\n[a](#one-thing) [b](absent.md) [c](#two) [d](https://x.org)\n")
    assert list(broken(page)) == ["absent.md", "#two"]


def test_every_page_is_in_the_contents():
    listed = re.findall(r"^[\w/*]+$", "".join(blocks(DOCS / "index.md")), flags=re.MULTILINE)
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} == set(listed)
    assert "systems/*" in "".join(blocks(DOCS / "systems.md"))


def blocks(page):
    return re.findall(r"^```{toctree}\n(.*?)^```", page.read_text(), flags=re.M | re.DOTALL)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    done = subprocess.run([*command, DOCS, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("index", "configs", "api", "systems/mor"):
        assert (tmp_path / f"{name}.html").stat().st_size > 5000


@pytest.mark.slow
def test_examples_of_the_public_names_run(tmp_path, monkeypatch):
    """Every public name has one."""
    monkeypatch.chdir(tmp_path)
    train = ["train", "--config=mor:tiny", "--workdir=runs/tiny", "--config.train.num_steps=1"]
    assert cli.main([*train, "--config.eval.num_batches=1"]) == 0
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for public in (*(getattr(recursia, name) for name in recursia.__all__), laws.check):
        (found,) = finder.find(public, globs={})
        assert found.examples, f"{public.__name__} has no example"
        assert runner.run(found).failed == 0, f"the example of {public.__name__} is wrong"
