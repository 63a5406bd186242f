r"""Length generalisation of shared and unshared blocks: formulas longer than those of training.

The task is the relation, one of seven, between two formulas of propositional logic (Bowman et al.
2015, arXiv 1506.04834). Models read `left ~ right ?` causally and predict the relation at the end;
only that prediction is trained. Training has formulas of up to four operators, the test up to
twelve. All models have one kind of block (Dehghani et al. 2018, arXiv 1807.03819) and the same
batches, steps and learning rate:

    dense_6           six layers without sharing; embeddings of the position are added to the input
    universal_6       six recursions of one block; position and recursion are added in each
    adaptive_6        at most six recursions of the same block: tokens halt by themselves
    dense_1           one layer, with the unique parameters of the two above
    universal_wide_6  universal_6 with twice the width

Positions start at a random offset, so that training has seen all positions of the test. The data
are the files of data/propositionallogic in github.com/yikangshen/Ordered-Memory, gzipped, with the
columns relation, left and right: train0.tsv.gz to train4.tsv.gz, test0.tsv.gz to test12.tsv.gz.
Runs that are already in the result file are not repeated.

  python benchmarks/length_generalisation.py --data=DIR \
      --out=benchmarks/results/length_generalisation_cpu.json
"""

import argparse
import functools
import gzip
import json
import pathlib
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from recursia import accounting, config, model, settings, sharding
from recursia.architecture import Model
from recursia.configs import blocks
from recursia.train.placement import State
from recursia.train.step import Trainer

RELATIONS = ("=", "#", "<", ">", "|", "^", "v")
SYMBOLS = (*"abcdef", "not", "and", "or", "(", ")", "~", "?")
# A relation is answered, never read: "=" is no symbol of a formula.
VOCAB = ("padding", *SYMBOLS, *(f"relation {name}" for name in RELATIONS))
IDS = {word: number for number, word in enumerate(VOCAB)}

TRAIN_OPERATORS = range(5)
TEST_OPERATORS = range(13)
TRAIN_TOKENS, TEST_TOKENS = 64, 128  # of a row; the longest examples have 52 and 118
TEST_ROWS = 400  # of each number of operators
LOG_STEPS = 250

RECURRENT = {"sharing": "cycle", "inject": {"position": "halves", "step": "halves"}}
DENSE = {"sharing": "none", "inject": {"position": "halves"}}
MODELS = {
    "dense_6": {**DENSE, "num_layers": 6, "depth": {"kind": "fixed", "num_recursions": 1}},
    "universal_6": {**RECURRENT, "num_layers": 6, "depth": {"kind": "fixed", "num_recursions": 6}},
    "adaptive_6": {**RECURRENT, "num_layers": 6, "depth": {"kind": "act", "num_recursions": 6}},
    "dense_1": {**DENSE, "num_layers": 1, "depth": {"kind": "fixed", "num_recursions": 1}},
}
MODELS["universal_wide_6"] = MODELS["universal_6"]
WIDER = {"universal_wide_6": 2}  # times; others have the width that was asked for
DEPTHS = {name: (4, 8, 12) for name in ("universal_6", "adaptive_6", "universal_wide_6")}

Example = tuple[list[int], int]  # tokens up to "?", and the relation's


def encode(line: str) -> Example:
    """Returns the tokens of a line `relation TAB left TAB right`, and the answer.

    Raises:
      ValueError: for another number of columns, or an unknown symbol.
    """
    columns = line.rstrip("\n").split("\t")
    if len(columns) != 3:
        raise ValueError(f"line: got {len(columns)} columns, takes relation, left, right")
    relation, left, right = columns
    words = [*left.split(), "~", *right.split(), "?"]
    unknown = [word for word in words if word not in SYMBOLS]
    if unknown or relation not in RELATIONS:
        raise ValueError(f"line: got {[relation, *unknown]!r}, takes {RELATIONS} and {SYMBOLS}")
    return [IDS[word] for word in words], IDS[f"relation {relation}"]


def read(folder: pathlib.Path, split: str, operators: int) -> list[Example]:
    with gzip.open(folder / f"{split}{operators}.tsv.gz", "rt") as lines:
        return [encode(line) for line in lines]


def packed(
    examples: Iterable[Example],
    shape: tuple[int, int],
    longest_offset: int,
    rng: np.random.Generator,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields packed batches of the examples, in order; each example is a segment of its own.

    Args:
      examples: tokens and answers; the last batch ends with empty rows.
      shape: rows of a batch and their tokens; padding is segment 0.
      longest_offset: an example's first position is at most this, drawn for each.
      rng: of the offsets.
    """
    batch, row, end, count = _empty(shape), 0, 0, 0
    for tokens, answer in examples:
        if end + len(tokens) > shape[1]:
            row, end, count = row + 1, 0, 0
        if row == shape[0]:
            yield batch
            batch, row = _empty(shape), 0
        place = row, slice(end, end + len(tokens))
        end, count = end + len(tokens), count + 1
        batch["tokens"][place] = tokens
        batch["positions"][place] = rng.integers(longest_offset + 1) + np.arange(len(tokens))
        batch["segment_ids"][place] = count
        batch["targets"][row, end - 1] = answer
        batch["weights"][row, end - 1] = 1
    yield batch


def _empty(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    whole = ("tokens", "targets", "positions", "segment_ids")
    return {name: np.zeros(shape, np.int32) for name in whole} | {"weights": np.zeros(shape, "f4")}


def forever(groups: list[list[Example]], rng: np.random.Generator) -> Iterator[Example]:
    """Yields examples of every group equally often, at random."""
    while True:
        group = groups[rng.integers(len(groups))]
        yield group[rng.integers(len(group))]


def trainer(options: argparse.Namespace, name: str, seed: int) -> Trainer:
    """Returns the trainer of one of the models."""
    wider, depth = WIDER.get(name, 1), dict(MODELS[name]["depth"])
    width = wider * options.width
    if depth["kind"] == "act":
        depth["halt_bias_init"] = options.halt_bias_init
        depth["act_loss_weight"] = options.act_loss_weight
    block = blocks.universal(width, wider * options.mlp_dim, num_heads=4, head_dim=width // 4)
    values = {
        "model": {
            **MODELS[name],
            "depth": depth,
            "block": block,
            "embed": {"init_std": width**-0.5, "scale": width**0.5},
        },
        "data": {"text": ("bundled:train",)},  # not read: batches are made here
        "train": {
            "num_steps": options.steps,
            "batch_size": options.batch_rows,
            "seq_len": TRAIN_TOKENS,
            "seed": seed,
        },
        "optimizer": {"learning_rate": options.learning_rate},
        "schedule": {"kind": "cosine", "warmup_steps": options.steps // 20},
    }
    run = config.build(settings.Run, values, "config")
    return Trainer(run, run.model.sized(len(VOCAB)), sharding.make_mesh(run.mesh))


def train(
    options: argparse.Namespace, made: Trainer, groups: list[list[Example]]
) -> tuple[State, dict]:
    """Returns the state after training, with the mean loss of the last twentieth of it."""
    rng = np.random.default_rng(made.run.train.seed)
    longest = max(len(tokens) for group in groups for tokens, _ in group)
    shape = options.batch_rows, TRAIN_TOKENS
    batches = packed(forever(groups, rng), shape, TEST_TOKENS - longest, rng)
    state, seen, losses = made.init(), 0, []
    for step in range(options.steps):
        batch = next(batches)
        seen += int(batch["weights"].sum())
        state, metrics = made.step_function(step)(state, made.put(batch))
        losses.append(metrics["loss"])
        if (step + 1) % LOG_STEPS == 0:
            shown = float(np.mean(jax.device_get(losses[-LOG_STEPS:])))
            depth = float(metrics["mean_depth"])
            print(f"step {step + 1}: loss {shown:.3f}, depth {depth:.2f}", flush=True)
    last = jax.device_get(losses[-max(options.steps // 20, 1) :])
    return state, {"examples_seen": seen, "final_loss": float(np.mean(last))}


def evaluate(
    options: argparse.Namespace, made: Model, weights: dict, test: dict[int, list[Example]]
) -> dict[str, list[float]]:
    """Returns, by operators, the accuracy and the recursions taken.

    The recursions are those of the token that answers, and the mean of all tokens.
    """
    run = jax.jit(functools.partial(_answers, made))
    shape, found = (options.batch_rows, TEST_TOKENS), {}
    for examples in test.values():
        batches = packed(examples, shape, 0, np.random.default_rng(0))
        sums = np.sum([np.array(run(weights, batch)) for batch in batches], axis=0)
        right, depth, count, all_depth, tokens = sums.tolist()
        found.setdefault("accuracy", []).append(right / count)
        found.setdefault("depth_of_answer", []).append(depth / count)
        found.setdefault("depth_of_tokens", []).append(all_depth / tokens)
    return found


def _answers(found: Model, weights: dict, batch: dict) -> jax.Array:
    out = model.apply(
        weights,
        batch["tokens"],
        found,
        positions=batch["positions"],
        segment_ids=batch["segment_ids"],
        mode="eval",
    )
    is_right = model.logits(weights, out.hidden, found).argmax(-1) == batch["targets"]
    asks, is_token = batch["weights"], batch["segment_ids"] > 0
    depth = out.aux.depth_used
    sums = (is_right * asks, depth * asks, asks, depth * is_token, is_token)
    return jnp.stack([each.sum() for each in sums])


def measure(options: argparse.Namespace, name: str, seed: int, groups: list, test: dict) -> dict:
    """Returns the cost and the results of one model, at its own depth and at others."""
    made = trainer(options, name, seed)
    state, trained = train(options, made, groups)
    weights = jax.device_get(state.params)
    at = {
        str(depth): evaluate(options, *model.at_depth(made.model, weights, depth), test)
        for depth in DEPTHS.get(name, ())
    }
    row_flops = accounting.training_flops(made.model, TRAIN_TOKENS)
    return {
        "model": name,
        "seed": seed,
        "unique_parameters": accounting.unique_parameters(made.model),
        "training_flops": row_flops * options.batch_rows * options.steps,
        **trained,
        **evaluate(options, made.model, weights, test),
        "at_depth": at,
    }


def described(options: argparse.Namespace, test: dict[int, list[Example]]) -> dict:
    """Returns the result without runs, or with the runs that the result file already has."""
    numbers = {k: v for k, v in vars(options).items() if isinstance(v, int | float)}
    most = lambda rows: Counter(answer for _, answer in rows).most_common(1)[0][1] / len(rows)
    result = {
        "command": " ".join(["python", *sys.argv]),
        "device": jax.devices()[0].device_kind,
        "cpu": platform.machine(),
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "dtype": "float32",
        "settings": numbers,
        "test_rows": [len(rows) for rows in test.values()],
        "majority": [most(rows) for rows in test.values()],
        "runs": [],
    }
    if options.out.exists():
        before = json.loads(options.out.read_text())
        if before["settings"] != numbers:
            raise SystemExit(f"--out: {options.out} has other settings; take another file")
        result["runs"] = before["runs"]
    return result


def table(result: dict) -> str:
    """Returns a Markdown table of accuracy and recursions by the number of operators."""
    percent = lambda values: [f"{100 * value:.0f}" for value in values]
    rows = [("model", "seed", *map(str, TEST_OPERATORS)), ("---",) * (len(TEST_OPERATORS) + 2)]
    rows.append(("most frequent relation", "", *percent(result["majority"])))
    for run in result["runs"]:
        rows.append((run["model"], str(run["seed"]), *percent(run["accuracy"])))
    for run in result["runs"]:
        for depth, found in run["at_depth"].items():
            where = f"{run['model']} at {depth} recursions"
            rows.append((where, str(run["seed"]), *percent(found["accuracy"])))
    for run in result["runs"]:
        if MODELS[run["model"]]["depth"]["kind"] == "act":
            for which in ("depth_of_answer", "depth_of_tokens"):
                taken = [f"{value:.2f}" for value in run[which]]
                rows.append((f"{run['model']}, {which}", str(run["seed"]), *taken))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="relations of formulas longer than in training")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder with *.tsv.gz")
    for name, default in [("steps", 4500), ("batch_rows", 16), ("width", 64), ("mlp_dim", 256)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--halt_bias_init", type=float, default=-3.0)
    parser.add_argument("--act_loss_weight", type=float, default=0.0)
    parser.add_argument("--seeds", default="0", help="separated by commas")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--out", type=pathlib.Path, required=True, help="result file, JSON")
    options = parser.parse_args()
    groups = [read(options.data, "train", number) for number in TRAIN_OPERATORS]
    rng = np.random.default_rng(0)
    test = {number: read(options.data, "test", number) for number in TEST_OPERATORS}
    test = {
        k: [rows[i] for i in rng.permutation(len(rows))[:TEST_ROWS]] for k, rows in test.items()
    }
    result = described(options, test)
    for seed in map(int, options.seeds.split(",")):
        for name in options.models.split(","):
            if any((run["model"], run["seed"]) == (name, seed) for run in result["runs"]):
                continue
            print(f"{name}, seed {seed}", flush=True)
            result["runs"].append(measure(options, name, seed, groups, test))
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
