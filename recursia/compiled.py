"""The folder of jax's persistent compilation cache.

jax's cache keys hold its version and the program, but not all features of a CPU, so each CPU model
has a folder of its own.
"""

import contextlib
import hashlib
import os
import pathlib
import platform
import sys

from recursia import console

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def use(*, is_on: bool = True) -> pathlib.Path | None:
    """Turns the cache on or off for this process; returns its folder, or None without a cache.

    If the folder is not writable, a message is printed and there is no cache.
    """
    if not is_on:
        os.environ[VARIABLE] = ""
    elif VARIABLE not in os.environ:
        folder = default()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(13, os.strerror(13))
        except OSError as error:
            console.say(f"{folder}: compiled programs cannot be kept here ({error.strerror})")
            return None
        os.environ[VARIABLE] = str(folder)
    if "jax" in sys.modules:
        sys.modules["jax"].config.update("jax_compilation_cache_dir", os.environ[VARIABLE] or None)
    return where()


def where() -> pathlib.Path | None:
    """Returns the folder of the cache; None without a cache."""
    name = os.environ.get(VARIABLE)
    return pathlib.Path(name) if name else None


def default() -> pathlib.Path:
    """Returns the folder in the user's cache directory, for this kind of CPU."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    with contextlib.suppress(RuntimeError):  # no home
        cache = pathlib.Path(cache).expanduser()
    return pathlib.Path(cache) / "recursia" / "compiled" / _cpu()


def _cpu() -> str:
    """Returns a name of the CPU's model and features."""
    features = platform.processor()
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
        keys = ("model name", "flags", "Features", "CPU part")
        features = "\n".join(line for line in lines.splitlines() if line.startswith(keys))
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
