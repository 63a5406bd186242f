"""A trained run, loaded from its directory: scores at chosen depths, baselines, continuations."""

import contextlib
import dataclasses
import pathlib
import tempfile
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from recursia import config, console, model, params, settings, sharding
from recursia.data import packing
from recursia.data.tokenizer import Tokenizer
from recursia.depth.policy import Mode
from recursia.errors import CheckpointError, ConfigError, DataError
from recursia.evaluate import baselines, perplexity
from recursia.generate import decode
from recursia.train import workdir as directory
from recursia.train.checkpoint import Checkpoints

EMPTY: Mapping[str, str] = types.MappingProxyType({})


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint and what it takes to use it.

    Attributes:
      run: its settings, with the mesh of the devices here.
      step: updates made.
      model: the model, at full depth.
      mesh: those devices, along "fsdp" if training split parameters, else along "data".
      params: float32 parameters.
      tokenizer: kept in the run's directory.
      paths: the data it was trained on; not opened, and perhaps no longer there.
    """

    run: settings.Run
    step: int
    model: model.Config
    mesh: Mesh
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
    paths = run.data.path or (str(workdir / directory.DATA),)
    checkpoints = Checkpoints(workdir / "checkpoints", run.checkpoint.keep, is_read_only=True)
    with contextlib.closing(checkpoints):
        step = checkpoints.choose(step)
        meta = checkpoints.meta(step)
        vocab = meta["model"]["vocab_size"]
        ours, theirs = (each.model.build(vocab) for each in (run, trained))
        specs = model.specs(ours)
        if overrides and params.abstract(specs) != params.abstract(model.specs(theirs)):
            changed = " ".join(f"--config.{k}={v}" for k, v in overrides.items())
            raise ConfigError(f"{changed}: makes a model with other parameters than {workdir} has")
        tokenizer = directory.tokenizer(workdir, run)
        if (saved := meta["data"].get("tokenizer")) not in (None, tokenizer.name):
            raise CheckpointError(
                f"{workdir}: has the tokenizer {tokenizer.name}, its checkpoints {saved}; put back "
                f"what {directory.TOKENIZER}/ held"
            )
        # Rows go wherever they divide, and so do parameters that training split.
        count = max(n for n in range(1, jax.device_count() + 1) if run.train.batch_size % n == 0)
        is_split = any(run.mesh.sizes[axis] != 1 for axis in ("fsdp", "tensor", "expert"))
        sizes = {"data": 1, "fsdp": count} if is_split else {"data": count, "fsdp": 1}
        here = sharding.Config(**sizes, rules=run.mesh.rules)
        mesh = sharding.make_mesh(here, jax.devices()[:count])
        where = sharding.fitting(specs, mesh, here.rules)
        weights = checkpoints.restore(step, {"params": params.abstract(specs, where)})["params"]
    run = dataclasses.replace(run, mesh=here)
    return Trained(run, step, ours, mesh, weights, tokenizer, paths)


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
    run, ours, mesh = trained.run, trained.model, trained.mesh
    modes = modes or model.modes(ours)
    scored = _scored(trained, workdir) if not text or has_baselines else ()
    if not text and not scored:
        raise DataError(f"{workdir}: its data has no validation split; give --text=FILE to score")
    with tempfile.TemporaryDirectory() as place:
        paths = (_pack(text, trained.tokenizer, place),) if text else scored
        rows, missing = [], {}
        for depth in dict.fromkeys(depths or (ours.grid.num_recursions,)):
            try:
                at_depth, weights = model.at_depth(ours, trained.params, depth)
            except ValueError as error:
                missing[depth] = str(error)
                continue
            for mode in modes:
                score = perplexity.score(
                    weights,
                    at_depth,
                    perplexity.validation_batches(run, paths, num_batches, mesh),
                    trained.tokenizer.token_bytes(),
                    mode=mode,
                    mesh=mesh,
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


def _scored(trained: Trained, workdir: pathlib.Path) -> tuple[str, ...]:
    """Returns the directories of the run's data that have a validation split.

    Raises:
      DataError: if the data is no longer there, or of another tokenizer.
    """
    try:
        readers = [packing.Reader(path) for path in trained.paths]
    except DataError as error:
        raise DataError(f"{error}; to score a text of your own, give --text=FILE") from None
    for reader in readers:
        directory.check_tokenizer(workdir, trained.run, reader.tokenizer, reader.directory)
    return tuple(r.directory for r in readers if "validation" in r.manifest["splits"])


def _pack(text: str, tokenizer: Tokenizer, place: str) -> str:
    """Returns a prepared directory that holds a text file as its validation split."""
    from recursia.data import prepare, source

    output = str(pathlib.Path(place) / "text")
    with packing.Writer(output, tokenizer, 1 << 27) as writer:
        documents = source.of(text).documents(on_error="stop")
        for _ in prepare.pack(writer, tokenizer, (("validation", each) for each in documents)):
            pass
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
                trained.model,
                ids,
                num_tokens=num_tokens,
                window=trained.run.train.seq_len,
                temperature=temperature,
                end_of_text=trained.tokenizer.end_of_text,
                key=jax.random.fold_in(jax.random.key(seed), index),
            )
        yield prompt + trained.tokenizer.continuation(ids, drawn)
