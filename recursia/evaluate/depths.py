"""Scores of a trained model at several depths."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from recursia import console, model, scores
from recursia.depth.policy import Mode
from recursia.errors import ConfigError, DataError
from recursia.evaluate import baselines, split
from recursia.workdir import trained as runs

Row = dict[str, Any]  # `depth`, `mode`, the fields of `scores.Score`, and perhaps `causal_gap`


def evaluate(
    workdir: pathlib.Path,
    *,
    step: int | None,
    text: str | None,
    depths: tuple[int, ...],
    modes: tuple[Mode, ...],
    num_batches: int,
    has_baselines: bool,
    overrides: Mapping[str, str],
) -> dict[str, Any]:
    """Returns scores of a checkpoint, by depth and mode.

    Args:
      workdir: the run's directory.
      step: of the checkpoint; None takes the latest.
      text: a file to score; None reads the run's validation split.
      depths: numbers of recursions to apply; none takes the trained depth.
      modes: "eval", "causal"; none takes both if they differ.
      num_batches: of each directory or file, to read; 0 reads all.
      has_baselines: whether n-gram models of the training split, gzip and xz are scored too, on
        the same tokens.
      overrides: fields of the depth policy to change, as typed.

    Returns:
      `step`, the scores of the trained depth, `table` with a row for each depth and mode,
      `missing` with the reason for each depth that the model does not allow, and `baselines`.

    Raises:
      ConfigError: if the model allows none of the depths.
      DataError: if there is no text to score.
    """
    with console.doing(f"loading {workdir}"):
        trained = runs.load(workdir, step, overrides)
    scored = split.of_run(trained, workdir) if not text or has_baselines else ()
    if not text and not scored:
        raise DataError(f"{workdir}: its data has no validation split; give --text=FILE to score")
    full_depth = trained.model.schedule.num_recursions
    with tempfile.TemporaryDirectory() as folder:
        paths = (split.of_file(text, trained.tokenizer, folder),) if text else scored
        modes = modes or trained.model.modes
        rows, missing = _table(trained, paths, depths or (full_depth,), modes, num_batches)
        if not rows:
            raise ConfigError(f"--depths: {'; '.join(dict.fromkeys(missing.values()))}")
        main = next((row for row in rows if row["depth"] == full_depth), rows[0])
        keys = ("bits_per_byte", "nats_per_token", "tokens", "mean_depth")
        result = {"step": trained.step, **{key: main[key] for key in keys}, "table": rows}
        if missing:
            result["missing"] = missing
        if has_baselines:
            tokens = num_batches * trained.run.train.batch_size * trained.run.train.seq_len
            result["baselines"] = baselines.scores(trained.paths, paths, trained.tokenizer, tokens)
    return result


def _table(
    trained: runs.Trained,
    paths: tuple[str, ...],
    depths: Sequence[int],
    modes: tuple[Mode, ...],
    num_batches: int,
) -> tuple[list[Row], dict[int, str]]:
    """Returns a row for each depth and mode, and the reason for each depth that is not allowed."""
    run, mesh = trained.run, trained.mesh
    rows, missing = [], {}
    for depth in dict.fromkeys(depths):
        try:
            config, weights = model.at_depth(trained.model, trained.params, depth)
        except ValueError as error:
            missing[depth] = str(error)
            continue
        for mode in modes:
            score = scores.score(
                weights,
                config,
                scores.validation_batches(run, paths, num_batches, mesh),
                trained.tokenizer.token_bytes(),
                mode=mode,
                mesh=mesh,
                rules=run.mesh.rules,
            )
            rows.append({"depth": depth, "mode": mode, **dataclasses.asdict(score)})
        if modes == ("eval", "causal"):
            published, causal = (row["nats_per_token"] for row in rows[-2:])
            rows[-1]["causal_gap"] = causal - published
    return rows, missing


def render(result: dict[str, Any]) -> str:
    """Returns the result of `evaluate` as a text table."""
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
    for depth, reason in result.get("missing", {}).items():
        lines.append(f"depth {depth} is missing: {reason}")
    return "\n".join(lines)
