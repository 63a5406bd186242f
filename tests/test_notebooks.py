"""Each notebook runs from an empty folder at its tiny size, is its script, and has no outputs."""

import pathlib

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers import cluster

FOLDER = pathlib.Path(__file__).parents[1] / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_is_its_script_without_outputs(script):
    written = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    cells = lambda book: [(cell.cell_type, cell.source, _tiny(cell)) for cell in book.cells]
    assert cells(written) == cells(jupytext.read(script)), "run jupytext --sync notebooks/*.py"
    code = [cell for cell in written.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert sum(_tiny(cell) != "" for cell in code) == 1


def test_every_notebook_has_a_script():
    assert [path.stem for path in sorted(FOLDER.glob("*.ipynb"))] == [s.stem for s in SCRIPTS]


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_runs_and_draws(script, tmp_path):
    book = jupytext.read(script)
    for cell in book.cells:
        cell.source += f"\n{_tiny(cell)}"
    client = NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=cluster.environment(1))
    outputs = [out for cell in book.cells for out in cell.get("outputs", ())]
    assert sum("image/png" in out.get("data", ()) for out in outputs) >= 2


def _tiny(cell):
    """Returns the assignments that make a notebook small, in the cell of its parameters."""
    return cell.metadata.get("tiny", "")
