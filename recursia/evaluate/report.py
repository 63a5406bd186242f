"""A trained run, loaded from its directory: scores at chosen depths, baselines, continuations."""

import dataclasses
import pathlib
import tempfile
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from recursia import config, console, model, params, settings, sharding
from recursia.data import packing
from recursia.data.tokenizer import Tokenizer
from recursia.depth.policy import Mode
from recursia.errors import ConfigError, DataError
from recursia.evaluate import baselines, perplexity
from recursia.generate import decode
from recursia.train import workdir as directory
from recursia.train.checkpoint import Checkpoints
from recursia.train.step import Trainer

EMPTY: Mapping[str, str] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint and what it takes to use it.

    Attributes:
      run: its settings, with the mesh of the devices here.
      step: updates made.
      trainer: the model and mesh.
      params: float32 parameters.
      tokenizer: of the data it was trained on.
      paths: that data.
    """

    run: settings.Run
    step: int
    trainer: Trainer
    params: Any
    tokenizer: Tokenizer
    paths: tuple[str, ...]


def load(workdir: pathlib.Path, step: int | None, overrides: Mapping[str, str] = EMPTY) -> Trained:
    """Returns a checkpoint of a run, laid over the devices that are here.

    Args:
      workdir: the run's directory.
      step: updates made; None takes the latest checkpoint.
      overrides: fields of the depth policy that are to be other than in training, as typed.

    Raises:
      ConfigError, CheckpointError: if it is no run's directory, holds no such checkpoint, or the
        overrides make another model of it.
    """
    trained = directory.recorded(workdir)
    run = config.override(trained, overrides)
    paths = run.data.path or (str(workdir / "data"),)
    readers = [packing.Reader(path) for path in paths]
    checkpoints = Checkpoints(workdir / "checkpoints", run.checkpoint.keep, is_read_only=True)
    step = checkpoints.choose(step)
    vocab = checkpoints.meta(step)["model"]["vocab_size"]
    # Rows go wherever they divide; nothing else of the run's mesh matters here.
    count = max(n for n in range(1, jax.device_count() + 1) if run.train.batch_size % n == 0)
    run = dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, data=count, fsdp=1))
    mesh = sharding.make_mesh(run.mesh, jax.devices()[:count])
    trainer = Trainer(run, run.model.build(vocab), mesh)
    shapes = lambda run: params.abstract(model.specs(run.model.build(vocab)))
    if overrides and shapes(run) != shapes(trained):
        changed = " ".join(f"--config.{k}={v}" for k, v in overrides.items())
        raise ConfigError(f"{changed}: makes a model with other parameters than {workdir} has")
    weights = checkpoints.restore(step, {"params": trainer.abstract().params})["params"]
    checkpoints.close()
    return Trained(run, step, trainer, weights, readers[0].tokenizer, paths)


def evaluate(
    workdir: pathlib.Path,
    *,
    step: int | None,
    text: str | None,
    depths: tuple[int, ...],
    modes: tuple[Mode, ...],
    num_batches: int,
    has_baselines: bool,
    overrides: Mapping[str, str] = EMPTY,
) -> dict[str, Any]:
    """Returns scores of a checkpoint, by depth and mode.

    Args:
      workdir: the run's directory.
      step: updates made; None takes the latest.
      text: a file to score; None reads the run's validation split.
      depths: recursions to walk; none takes the trained depth.
      modes: "eval", "causal"; none takes both where they differ.
      num_batches: of each directory or file, to read; 0 reads all.
      has_baselines: whether n-gram models of the training split, gzip and xz are scored too, on
        the same tokens.
      overrides: fields of the depth policy that are to be other than in training, as typed.

    Returns:
      `step`, the scores of the trained depth, `table` with a row for each depth and mode, and
      where the model cannot walk a depth `missing`: why, by depth.

    Raises:
      ConfigError: if no depth can be walked.
    """
    with console.doing(f"loading {workdir}"):
        trained = load(workdir, step, overrides)
    run, ours = trained.run, trained.trainer.model
    modes = modes or model.modes(ours)
    with tempfile.TemporaryDirectory() as place:
        paths = (_pack(text, trained.tokenizer, place),) if text else trained.paths
        rows, missing = [], {}
        for depth in dict.fromkeys(depths or (ours.grid.num_recursions,)):
            try:
                at_depth, weights = model.at_depth(ours, trained.params, depth)
            except ValueError as error:
                missing[depth] = str(error)
                continue
            for mode in modes:
                batches = perplexity.validation_batches(
                    run, paths, num_batches, trained.trainer.mesh
                )
                score = perplexity.score(
                    weights,
                    at_depth,
                    _watched(batches, f"scoring depth {depth}, {mode}"),
                    trained.tokenizer.token_bytes(),
                    mode=mode,
                    mesh=trained.trainer.mesh,
                    rules=run.mesh.rules,
                )
                rows.append({"depth": depth, "mode": mode, **dataclasses.asdict(score)})
            if modes == ("eval", "causal"):
                published, causal = (row["nats_per_token"] for row in rows[-2:])
                rows[-1]["causal_gap"] = causal - published
        if not rows:
            raise ConfigError(f"--depths: {'; '.join(dict.fromkeys(missing.values()))}")
        main = next((r for r in rows if r["depth"] == ours.grid.num_recursions), rows[0])
        keys = ("bits_per_byte", "nats_per_token", "tokens", "mean_depth")
        result = {"step": trained.step, **{key: main[key] for key in keys}, "table": rows}
        if missing:
            result["missing"] = missing
        if has_baselines:
            tokens = num_batches * run.train.batch_size * run.train.seq_len
            result["baselines"] = baselines.scores(trained.paths, paths, trained.tokenizer, tokens)
    return result


def _watched(batches: Iterator[Any], about: str) -> Iterator[Any]:
    """Yields batches and draws how many there were."""
    with console.bar(about, None, "batches") as advance:
        for batch in batches:
            yield batch
            advance(1)


def _pack(text: str, tokenizer: Tokenizer, place: str) -> str:
    """Returns a prepared directory that holds a text file as its validation split."""
    from recursia.data import source

    output = str(pathlib.Path(place) / "text")
    with packing.Writer(output, tokenizer, 1 << 27) as writer:
        count = 0
        for document in source.documents(text, on_error="stop"):
            writer.add("validation", tokenizer.encode(document), len(document.encode()))
            count += 1
        if not count:
            raise DataError(f"{text}: holds 0 documents")
        writer.finish({})
    return output


def render(result: dict[str, Any]) -> str:
    """Returns the scores as a table."""
    lines = [f"step {result['step']}, {result['tokens']:,} tokens", ""]
    lines.append(f"{'':22} {'bits/byte':>10} {'nats/token':>11} {'recursions/token':>17}")
    for row in result["table"]:
        name = f"depth {row['depth']}, {row['mode']}"
        lines.append(
            f"{name:22} {row['bits_per_byte']:10.4f} {row['nats_per_token']:11.4f} "
            f"{row['mean_depth']:17.3f}"
        )
        if "causal_gap" in row:
            lines.append(f"{'  causal gap':22} {'':10} {row['causal_gap']:+11.4f}")
    for name, bits in result.get("baselines", {}).items():
        lines.append(f"{name:22} {bits:10.4f}")
    for depth, why in result.get("missing", {}).items():
        lines.append(f"depth {depth} is missing: {why}")
    return "\n".join(lines)


def continue_prompts(
    workdir: pathlib.Path,
    *,
    step: int | None,
    prompts: list[str],
    num_tokens: int,
    temperature: float,
    seed: int,
    overrides: Mapping[str, str] = EMPTY,
) -> Iterator[str]:
    """Yields each prompt with its continuation.

    Args:
      workdir: the run's directory.
      step: updates made; None takes the latest.
      prompts: beginnings.
      num_tokens: tokens to add at most.
      temperature: of the draws; 0 takes the likeliest token.
      seed: of the draws.
      overrides: fields of the depth policy that are to be other than in training, as typed.

    Raises:
      ConfigError: for an empty prompt, or a number out of range.
    """
    if num_tokens < 1 or temperature < 0:
        raise ConfigError(
            f"generate: got --num_tokens={num_tokens} --temperature={temperature}, takes at least "
            "1 and 0"
        )
    with console.doing(f"loading {workdir}"):
        trained = load(workdir, step, overrides)
    for index, prompt in enumerate(prompts):
        if not (ids := trained.tokenizer.encode(prompt)):
            raise ConfigError("--prompt: is empty; give at least one token")
        with console.doing(f"continuing prompt {index + 1} of {len(prompts)}"):
            drawn = decode.generate(
                trained.params,
                trained.trainer.model,
                ids,
                num_tokens=num_tokens,
                window=trained.run.train.seq_len,
                temperature=temperature,
                end_of_text=trained.tokenizer.end_of_text,
                key=jax.random.fold_in(jax.random.key(seed), index),
            )
        yield prompt + trained.tokenizer.decode(drawn)
