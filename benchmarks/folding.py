r"""A trained model folded, and trained on: what distillation gives back, and what sharing costs.

Takes a checkpoint from elsewhere and a text of its kind. The model is folded by `recursia convert
fold`, and trained on with and without distillation, beside the same plan from scratch; parts of it
start another architecture (`--others=new`). Without training it shares the keys of layers and the
weights of heads, and its matrices become combinations of atoms. What is done is not done again.

  python benchmarks/folding.py --model=stories260K.bin --text=tinystories_train_head.txt.gz \
    --workdir=runs/folding --out=benchmarks/results/folding_cpu.json
"""

import argparse
import contextlib
import dataclasses
import functools
import gzip
import importlib.metadata
import json
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp

from recursia import config, scores
from recursia.architecture import Model
from recursia.convert import calibration, dissimilar, heads, recursive
from recursia.params import Params
from recursia.sharing.atoms import Atoms
from recursia.train import earlier, opening
from recursia.workdir import trained

BEGINS = "Once upon a time"  # a story
STEPS, EVERY, BATCH, LENGTH, RATE = 200, 50, 4, 256, 1e-3
HELD = 8  # batches that are scored
TEACHER = {"distill.teacher": "dense"}  # a folder of --workdir, as are those of train.init_from
STATES = TEACHER | {"distill.weight": 0, "distill.layers": 2}
FOLDED = {"train.init_from": "folded"}
# By name: the model, and the fields with which it is trained.
RUNS = {
    "from scratch": ("folded", {}),
    "plain": ("folded", FOLDED),
    "logits": ("folded", FOLDED | TEACHER),
    "last 2 layers": ("folded", FOLDED | STATES),
    "both": ("folded", FOLDED | STATES | {"distill.weight": 0.5}),
    "other heads, from scratch": ("fitted", {}),
    "other heads, copied parts": ("fitted", {"train.init_from": "fitted"}),
}
HEADS = {"block.mixer.num_heads": 4, "block.mixer.num_kv_heads": 2}  # of 8 and 4
ATOMS = (1, 2, 3, 5)
SHARED = (0.1, 0.2, 0.3, 0.5)  # of the heads
MATRICES = {"query, key, value": ("query", "key", "value")}
MATRICES["query, key, value, out"] = (*MATRICES["query, key, value"], "out")


def recursia(*words: str, **fields: object) -> None:
    """Runs a command."""
    command = [sys.executable, "-m", "recursia", *words]
    command += [f"--config.{field}={value}" for field, value in fields.items()]
    subprocess.run(command, check=True)


def stories(text: pathlib.Path, workdir: pathlib.Path) -> None:
    """Writes the stories of a text as documents, with one line break between paragraphs."""
    read = gzip.open if text.suffix == ".gz" else open
    with read(text, "rt", encoding="utf-8") as file:
        whole = file.read().replace("\n\n", "\n")
    found = [BEGINS + rest.rstrip() for rest in whole.split(BEGINS)[1:]]
    held = len(found) // 5
    for name, own in (("train", found[:-held]), ("valid", found[-held:])):
        lines = "".join(json.dumps({"text": story}) + "\n" for story in own)
        (workdir / f"{name}.jsonl").write_text(lines)


def prepare(options: argparse.Namespace) -> None:
    """Makes the dense model, the data, the folded model and the one of another architecture."""
    at = lambda name: str(options.workdir / name)
    if not (options.workdir / "data").exists():
        stories(options.text, options.workdir)
        made = f"--input={options.model}", f"--output={at('dense')}", f"--seq_len={LENGTH}"
        recursia("convert", "huggingface", *made)
        made = f"--input={at('train.jsonl')}", f"--validation={at('valid.jsonl')}"
        made += f"--output={at('data')}", f"--tokenizer={at('dense')}/tokenizer"
        recursia("data", "prepare", *made)
    if not (options.workdir / "folded").exists():
        made = f"--workdir={at('dense')}", f"--output={at('folded')}", "--num_batches=4"
        recursia("convert", "fold", *made, f"--text={at('train.jsonl')}", "--num_groups=3")
    if not (options.workdir / "fitted").exists():
        made = f"--workdir={at('dense')}", f"--output={at('fitted')}"
        recursia("convert", "recursive", *made, "--others=new", **HEADS)


def train(name: str, options: argparse.Namespace) -> list[list[float]]:
    """Returns the validation losses every so often, for each order of the data."""
    model, fields = RUNS[name]
    folder, workdir = options.workdir / name.replace(" ", "_").replace(",", ""), options.workdir
    done = folder / "losses.json"
    if done.exists():
        return json.loads(done.read_text())
    places = ("distill.teacher", "train.init_from")
    fields = {n: workdir / value if n in places else value for n, value in fields.items()}
    fields |= {"data.path": workdir / "data", "optimizer.learning_rate": RATE}
    fields |= {"train.num_steps": STEPS, "train.batch_size": BATCH, "train.seq_len": LENGTH}
    fields |= {"schedule.warmup_steps": 10, "eval.num_batches": HELD, "eval.prompts": ""}
    run = config.load(str(workdir / model), {field: str(value) for field, value in fields.items()})
    folder.mkdir(exist_ok=True)
    parts = opening.opened(run, folder)
    trainer, found = parts.trainer, []
    start = trainer.init()
    if run.train.init_from:
        start, _ = earlier.start(trainer, start, parts.loader.tokenizer)
    for seed in range(options.seeds):
        data = dataclasses.replace(run.data, seed=seed)
        loader = opening.load(dataclasses.replace(run, data=data), parts.paths, trainer.mesh)
        state, losses = jax.tree.map(jnp.copy, start), []
        with contextlib.closing(loader.iterate(0)) as batches:
            for step in range(STEPS):
                state, _ = trainer.step_function(step)(state, trainer.put(next(batches)))
                if (step + 1) % EVERY == 0:
                    losses.append(parts.validation.row(state.params)["validation_loss"])
        found.append(losses)
        print(name, seed, losses, flush=True)
    done.write_text(json.dumps(found))
    return found


def untrained(options: argparse.Namespace) -> dict:
    """Returns the losses of models that are not trained on, on the same tokens."""
    done = options.workdir / "untrained.json"
    if done.exists():
        return json.loads(done.read_text())
    loaded = trained.load(options.workdir / "dense")
    run = dataclasses.replace(
        loaded.run, train=dataclasses.replace(loaded.run.train, batch_size=BATCH)
    )
    paths = (str(options.workdir / "data"),)
    batches = list(scores.validation_batches(run, paths, HELD, loaded.mesh))
    dense, params = calibration.dense(loaded.params, loaded.model)

    def scored(model: Model, params: Params) -> tuple[np.ndarray, float]:
        """Returns the last states and the loss of a model."""
        hidden = calibration.hidden(params, model, batches)
        logits = hidden @ np.asarray(model.embed.head(params["embed"])["matrix"]).T
        targets = np.concatenate([np.asarray(b["targets"])[b["weights"] > 0] for b in batches])
        own = np.take_along_axis(logits, targets[:, None], 1)[:, 0]
        return hidden, float((np.asarray(logsumexp(logits, axis=1)) - own).mean())

    folded = trained.load(options.workdir / "folded")
    before, loss = scored(dense, params)
    found = {"dense": loss, "folded": scored(folded.model, folded.params)[1]}
    found |= {"keys": {}, "atoms": {}, "heads": {}}
    farthest = dissimilar.pairs(calibration.keys(params, dense, batches))
    orders = {"farthest first": farthest, "nearest first": farthest[::-1]}
    for seed in range(2):
        orders[f"random {seed}"] = random.Random(seed).sample(farthest, len(farthest))

    @functools.cache
    def shared(owners: tuple[int, ...]) -> dict:
        hidden, loss = scored(*dissimilar.reading(params, dense, owners))
        return {"owners": owners, "cosine": dissimilar.cosine(before, hidden), "loss": loss}

    for order, pairs in orders.items():
        owners, rows = tuple(range(dense.num_layers)), found["keys"].setdefault(order, [])
        for owner, reader, _ in pairs:
            if dissimilar.can_read(owners, owner, reader):
                owners = (*owners[:reader], owner, *owners[reader + 1 :])
                rows.append(shared(owners))
                print(order, rows[-1], flush=True)
    for names, matrices in MATRICES.items():
        for count in ATOMS:
            target = dataclasses.replace(dense, weights=Atoms(count, names=matrices))
            made = recursive.recursive(params, dense, target, "first", key=jax.random.key(0))
            found["atoms"].setdefault(names, {})[str(count)] = scored(target, made)[1]
    alike = heads.similarity(heads.units(params, dense))
    rows = {"most alike": alike}
    rows |= {f"random {i}": np.random.default_rng(i).random(alike.shape) for i in range(2)}
    for order, by in rows.items():
        for part in SHARED:
            owners = heads.chosen(by, dense.num_layers, round(part * len(alike)))
            loss = scored(*heads.shared(params, dense, owners))[1]
            found["heads"].setdefault(order, {})[str(part)] = loss
            print(order, part, loss, flush=True)
    done.write_text(json.dumps(found))
    return found


def table(found: dict) -> str:
    """Returns the losses of training as Markdown."""
    rows = [["trained", *(f"{step} steps" for step in found["steps"])]]
    for name, runs in found["trained"].items():
        by_step = zip(*runs, strict=True)
        rows.append([name, *(f"{statistics.mean(x):.3f} ({max(x) - min(x):.3f})" for x in by_step)])
    return _markdown(rows)


def keys(found: dict) -> str:
    """Returns the losses of shared keys as Markdown."""
    found = found["untrained"]["keys"]
    rows = [["", *(f"{count + 1} shared" for count in range(max(map(len, found.values()))))]]
    for order, own in found.items():
        rows.append([order, *(f"{row['loss']:.3f} ({row['cosine']:.3f})" for row in own)])
    return _markdown(rows)


def atoms(found: dict) -> str:
    """Returns the losses of atoms as Markdown."""
    return _grid("atoms", [str(count) for count in ATOMS], found["untrained"]["atoms"])


def shared_heads(found: dict) -> str:
    """Returns the losses of shared heads as Markdown."""
    return _grid("heads shared", [str(part) for part in SHARED], found["untrained"]["heads"])


def _grid(corner: str, columns: list[str], found: dict) -> str:
    rows = [[name, *(f"{own[key]:.3f}" for key in columns)] for name, own in found.items()]
    return _markdown([[corner, *columns], *rows])


def _markdown(rows: list[list[str]]) -> str:
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def main() -> None:
    """Parses the options, measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, about in (
        ("model", "a checkpoint from elsewhere, of width 64 with 8 and 4 heads"),
        ("text", "of its kind: stories"),
        ("workdir", "a folder for models and runs"),
        ("out", "a JSON file"),
    ):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True, help=about)
    parser.add_argument("--seeds", type=int, default=3, help="orders of the data")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    options.workdir = options.workdir.resolve()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(options.workdir / "compiled")
    begin = time.perf_counter()
    prepare(options)
    found = {
        "command": "python benchmarks/folding.py --model=stories260K.bin "
        "--text=tinystories_train_head.txt.gz",
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "versions": {"jax": importlib.metadata.version("jax"), "python": platform.python_version()},
        "dtype": "float32",
        "shape": {"batch_size": BATCH, "seq_len": LENGTH, "num_steps": STEPS, "heads": HEADS},
        "learning_rate": RATE,
        "steps": [*range(EVERY, STEPS + 1, EVERY)],
        "untrained": untrained(options),
        "trained": {name: train(name, options) for name in RUNS},
        "seconds": 0.0,
    }
    found["seconds"] = round(time.perf_counter() - begin)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found), keys(found), shared_heads(found), atoms(found), sep="\n")


if __name__ == "__main__":
    main()
