"""The two images differ by the chips alone."""

import difflib
import pathlib
import tomllib

ROOT = pathlib.Path(__file__).parents[2]


def instructions(name):
    lines = (ROOT / "docker" / f"{name}.Dockerfile").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_both_images_install_the_same_pins():
    changed = [
        line for line in difflib.ndiff(instructions("tpu"), instructions("gpu")) if line[0] in "+-"
    ]
    install = "RUN pip install --no-cache-dir --constraint requirements.txt"
    assert changed == [f'- {install} ".[tpu]"', f'+ {install} ".[cuda]"']
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"tpu", "cuda"} <= extras["optional-dependencies"].keys()
    minor = extras["requires-python"].removeprefix(">=")
    assert instructions("tpu")[0] == f"FROM python:{minor}-slim"


def test_environments_and_runs_stay_out_of_the_images():
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv*", "runs"} <= set(ignored)
    assert not {"corpus", "configs", "kernels", "requirements.txt"} & set(ignored)
