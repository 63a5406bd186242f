"""Tiny training runs, what they wrote, and whether two of them are equal."""

import hashlib
import json
import math
import pathlib
import random

import jax
import numpy as np
import orbax.checkpoint as ocp

from recursia import cli, config, settings
from recursia.configs import blocks
from recursia.workdir import grouped

SPEED = ("tokens_per_second", "flops_utilization", "flops_utilization_6n")
FILE = """
import json
from ml_collections import ConfigDict


def get_config(preset="tiny"):
    return ConfigDict(json.loads({!r})).lock()
"""
DEPTHS = {
    "expert_choice": {"kind": "expert_choice", "num_recursions": 2},
    "fixed": {"kind": "fixed", "num_recursions": 2},
}


def prose(seed: int, words: int) -> str:
    """Returns words that repeat, so that a tiny model learns something."""
    draw = random.Random(seed).choice
    return " ".join(draw(["red", "blue", "green", "one", "seven", "ten"]) for _ in range(words))


def write_text(folder: pathlib.Path) -> None:
    (folder / "train.txt").write_text(prose(0, 800))
    (folder / "validation.txt").write_text(prose(1, 60))


# A run that is trained once and read, stopped or killed by many tests.
STEPS = 6
TYPED = {"depth.alpha": "0.2", "optimizer.learning_rate": "1e-2", "data.on_error": "skip"}
SECTIONS = {
    "checkpoint": {"every_steps": 2, "keep": 2},
    "eval": {"every_steps": 3, "prompts": ["red", "blue "], "sample_tokens": 6},
}


def command(folder: pathlib.Path, workdir: pathlib.Path, *overrides: str) -> list[str]:
    """Returns what is typed to train it: overrides replace those that are typed by default."""
    names = {override.removeprefix("--config.").partition("=")[0] for override in overrides}
    typed = [f"--config.{name}={value}" for name, value in TYPED.items() if name not in names]
    return ["train", f"--config={folder / 'tiny.py'}", *typed, f"--workdir={workdir}", *overrides]


def train(folder: pathlib.Path, workdir: pathlib.Path, *overrides: str) -> int:
    return cli.main(command(folder, workdir, *overrides))


def values(folder: pathlib.Path, depth: str = "expert_choice", **sections: dict) -> dict:
    """Returns a tiny run as plain values; a section's fields are changed by name."""
    heads = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8}
    base = {
        "model": {
            "num_layers": 2,
            "sharing": "cycle",
            "block": blocks.llama(embed_dim=16, mlp_dim=32, **heads),
            "depth": DEPTHS[depth],
        },
        "data": {
            "text": [str(folder / "train.txt")],
            "validation_text": [str(folder / "validation.txt")],
        },
        "train": {"num_steps": 6, "batch_size": 8, "seq_len": 16},
        "log": {"every_steps": 1},
    }
    return {
        name: base.get(name, {}) | sections.get(name, {}) for name in base.keys() | sections.keys()
    }


def tiny_run(folder: pathlib.Path, depth: str = "expert_choice", **sections: dict) -> settings.Run:
    return config.build(settings.Run, values(folder, depth, **sections), "config")


def write_config(path: pathlib.Path, contents: dict) -> str:
    """Writes a configuration file; returns what `--config` takes."""
    path.write_text(FILE.format(json.dumps(contents)))
    return str(path)


def rows(workdir: pathlib.Path, name: str = "metrics.jsonl") -> list[dict]:
    """Returns the rows of a file without throughput and seconds, which differ between runs."""
    lines = [json.loads(line) for line in (workdir / name).read_text().split("\n")[:-1]]
    is_timing = lambda name: name in SPEED or name.startswith("seconds_")
    return [{k: v for k, v in line.items() if not is_timing(k)} for line in lines]


def saved(workdir: pathlib.Path) -> list[int]:
    """Returns the steps with a finished checkpoint."""
    names = [path.parent.name for path in workdir.glob("checkpoints/*/commit_success.txt")]
    return sorted(int(name) for name in names if name.isdecimal())  # others are set aside


def state_of(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Returns every array of a checkpoint by its dotted name, whatever devices saved it."""
    folder = workdir.absolute() / "checkpoints" / str(step)
    reader = ocp.PyTreeCheckpointer()
    tree = reader.metadata(folder / "state").item_metadata.tree
    arrays = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    found = grouped.named(reader.restore(folder / "state", restore_args=arrays))
    for group, held in json.loads((folder / "meta" / "metadata").read_bytes())["groups"].items():
        ends = np.cumsum([math.prod(shape) for _, shape in held])[:-1]
        for (name, shape), part in zip(held, np.split(found.pop(group), ends), strict=True):
            found[name] = part.reshape(shape)
    return found


def is_equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    """Returns whether two states are equal bit for bit."""
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype and ours[name].tobytes() == theirs[name].tobytes()
        for name in ours
    )


def differences(ours: pathlib.Path, theirs: pathlib.Path, step: int = STEPS) -> list[str]:
    """Returns what two finished runs do not share to the bit."""
    names = [name for name in ("metrics.jsonl", "samples.jsonl") if (theirs / name).exists()]
    found = [name for name in names if rows(ours, name) != rows(theirs, name)]
    if not saved(ours)[-1:] == saved(theirs)[-1:] == [step]:
        return [*found, f"steps {saved(ours)} and {saved(theirs)}"]
    states = state_of(ours, step), state_of(theirs, step)
    return found if is_equal(*states) else [*found, "the state"]


def hashes(folder: pathlib.Path) -> dict[str, str]:
    """Returns the digest of every file under a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
