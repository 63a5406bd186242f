"""What the page of kernels shows runs, without the rest of the package."""

import pathlib
import re
import subprocess
import sys

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "kernels.md"
GIVEN = """
import jax, jax.numpy as jnp
jax.config.update("jax_platforms", "cpu")
draw = lambda *shape: jax.random.normal(jax.random.key(len(shape)), shape)
index = jnp.array([[0, 2, 3, 7], [1, 4, 5, 6]])
query, key, value = draw(2, 8, 4, 16), draw(2, 8, 2, 16), draw(2, 8, 2, 16)
q, k, v = query[:, :4], key[:, :4], value[:, :4]
tokens, up, down, weights = draw(6, 16), draw(8, 16, 32), draw(8, 32, 16), draw(6, 2)
chosen = jnp.arange(12).reshape(6, 2) % 8
"""
CHECKED = """
assert plain.shape == query.shape and some.shape == rest.shape == q.shape
assert out.shape == tokens.shape
import sys
loaded = [name for name in sys.modules if name.startswith("recursia.")]
assert all(name.startswith("recursia.kernels") for name in loaded), loaded
"""


def test_the_page_runs_and_loads_nothing_of_the_rest():
    shown = "\n".join(re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), re.M | re.S))
    done = subprocess.run(
        [sys.executable, "-c", GIVEN + shown + CHECKED], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
