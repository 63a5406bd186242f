"""Scores of a trained model at several depths."""

import dataclasses
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from recursia import scores
from recursia.errors import ConfigError, DataError
from recursia.evaluate import baselines, routing, split
from recursia.evaluate.variants import Row, Variant, add_gaps
from recursia.workdir.trained import Trained


def evaluate(
    trained: Trained,
    workdir: pathlib.Path,
    variants: Sequence[Variant],
    *,
    text: str | None,
    num_batches: int,
    has_baselines: bool,
    has_routing: bool = False,
    choices: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Returns scores of a trained model on text, by depth, mode and capacity.

    Args:
      trained: the model.
      workdir: the run's directory.
      variants: how it is read, at least one.
      text: a file to score; None reads the run's validation split.
      num_batches: of each directory or file, to read; 0 reads all.
      has_baselines: whether n-gram models of the training split, gzip and xz are scored too, on
        the same tokens.
      has_routing: whether `routing.evaluate` says how tokens are routed, at the trained depth if
        that is among the variants.
      choices: a new `.npz` for the choices of every token, with `has_routing`; None writes none.

    Returns:
      The scores of the trained depth, `table` with a row for each variant, `baselines` and
      `routing`.

    Raises:
      ConfigError: for baselines of a model that came without its training data, or routing of one
        without choices.
      DataError: if there is no text to score, or data that are read have changed.
    """
    if has_baselines and not trained.paths:
        raise ConfigError(
            f"--baselines: are counted on the training split, and {workdir} came without; leave "
            "them out"
        )
    scored = split.of_run(trained, workdir) if not text or has_baselines else ()
    if not text and not scored:
        raise DataError(f"{workdir}: its data has no validation split; give --text=FILE to score")
    read = {"validation": not text, "train": has_baselines}
    split.check(trained, workdir, [name for name, is_read in read.items() if is_read])
    with tempfile.TemporaryDirectory() as folder:
        paths = (split.of_file(text, trained.tokenizer, folder),) if text else scored
        routes: dict[str, Any] = {}
        if has_routing:
            how = {"num_batches": num_batches, "choices": choices}
            routes["routing"] = routing.evaluate(trained, variants, paths, **how)
        rows = [_row(trained, variant, paths, num_batches) for variant in variants]
        add_gaps(rows, ("depth",), lambda row: row["nats_per_token"])
        full_depth = trained.model.schedule.num_recursions
        main = next((row for row in rows if row["depth"] == full_depth), rows[0])
        keys = ("bits_per_byte", "nats_per_token", "tokens", "mean_depth")
        result = {**{key: main[key] for key in keys}, "table": rows, **routes}
        if has_baselines:
            tokens = num_batches * trained.run.train.batch_size * trained.run.train.seq_len
            result["baselines"] = baselines.scores(trained.paths, paths, trained.tokenizer, tokens)
    return result


def _row(trained: Trained, variant: Variant, paths: tuple[str, ...], num_batches: int) -> Row:
    score = scores.score(
        variant.params,
        variant.model,
        scores.validation_batches(trained.run, paths, num_batches, trained.mesh),
        trained.tokenizer.token_bytes(),
        mode=variant.mode,
        mesh=trained.mesh,
        rules=trained.run.mesh.rules,
    )
    cache = {"cache_bytes_per_token": variant.cache_bytes_per_token}
    return {**variant.names, **dataclasses.asdict(score), **cache}
