"""Scores of a trained run, by the recursions it walks."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

from recursia import console, model, scores
from recursia.depth.policy import Mode
from recursia.errors import ConfigError, DataError
from recursia.evaluate import baselines, split
from recursia.workdir import trained as runs


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
        trained = runs.load(workdir, step, overrides)
    run, ours, mesh = trained.run, trained.model, trained.mesh
    modes = modes or ours.modes
    scored = split.of_run(trained, workdir) if not text or has_baselines else ()
    if not text and not scored:
        raise DataError(f"{workdir}: its data has no validation split; give --text=FILE to score")
    with tempfile.TemporaryDirectory() as place:
        paths = (split.of_file(text, trained.tokenizer, place),) if text else scored
        rows, missing = [], {}
        for depth in dict.fromkeys(depths or (ours.schedule.num_recursions,)):
            try:
                at_depth, weights = model.at_depth(ours, trained.params, depth)
            except ValueError as error:
                missing[depth] = str(error)
                continue
            for mode in modes:
                score = scores.score(
                    weights,
                    at_depth,
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
        if not rows:
            raise ConfigError(f"--depths: {'; '.join(dict.fromkeys(missing.values()))}")
        main = next((r for r in rows if r["depth"] == ours.schedule.num_recursions), rows[0])
        keys = ("bits_per_byte", "nats_per_token", "tokens", "mean_depth")
        result = {"step": trained.step, **{key: main[key] for key in keys}, "table": rows}
        if missing:
            result["missing"] = missing
        if has_baselines:
            tokens = num_batches * run.train.batch_size * run.train.seq_len
            result["baselines"] = baselines.scores(trained.paths, paths, trained.tokenizer, tokens)
    return result


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
